// See the header.
#include "Certificate.h"

using namespace aligned;

Val aligned::growth(Val x) {
  Emitter &e = *x.e;
  Val power = exp(x), small = (x + x * x * power * 0.5) * (1 + 0x1p-20); // by Taylor's remainder
  return select(x < 1, small, select(x < 40, power * (1 + 0x1p-20), e.constant(x.type(), INFINITY)));
}

Vals aligned::certificateOf(const CertificateSums &s) {
  Val mass = s.exactMass + s.tokens * kLeastWeight, exact = s.exactGrowth * mass + s.growthOfNothing;
  Val moment = s.reach * s.unit + mass * s.largest, common = s.unread * s.commonShare;
  Vals numbers{s.grown + exact,
               s.grownReach * s.unit + exact * s.largest,
               moment,
               (s.error + s.weightError) * s.unit + s.valueRounding * moment,
               (s.variance + common * common + s.scoreVariance * s.sum * s.sum) * s.unit * s.unit,
               s.largest,
               s.largest * 0,
               s.largest * 0};
  for (Val &number : numbers)
    number = number * s.inflation;
  return numbers;
}
