// P4 under libFuzzer: the search climbs towards errors that exceed their bound.
//
// An input is a header and a stream of values. The header chooses what is compiled, tokens, planes that are kept, the seed of a case that the property
// suite would make, and for each of q, k and v whether it is that case's, or the stream's raw bit patterns, or the case's with patterns of the stream
// strewn over it. How close the error came to the bound, in logarithmic steps, counts as coverage: an input that comes closer is kept and bred from.
// Bounds of each size have steps of their own, since the largest, that no output lies outside the values, is easily reached.
//
//   aligned-fuzz CORPUS -max_total_time=60      searches; a counterexample is written to a file, which is all that reproduces it:
//   aligned-fuzz crash-...                      runs one input
#include "../unittests/JIT/Certified.h"

#include <cstdio>
#include <cstdlib>

using namespace aligned;

namespace {

constexpr size_t kSubjects = 32;
constexpr int kSizes = 5, kOctavesPerSize = 4, kSteps = 128, kStepsPerOctave = 8; // the last step is a ratio of 1
__attribute__((section("__libfuzzer_extra_counters"))) uint8_t steps[kSubjects][kSizes][kSteps];

/// Position of a positive number on a scale that ends at `last` with 1 and above, the lowest step for all below.
int stepOf(double x, double perOctave, int last) { return std::max(0, last + static_cast<int>(std::floor(std::min(0.0, perOctave * std::log2(x))))); }

/// Inputs of each subject, and the closest that bounds of each size were approached; said at the end.
struct Summary {
  size_t inputs[kSubjects] = {};
  double ratio[kSubjects][kSizes] = {};

  ~Summary() {
    std::fprintf(stderr, "largest error / bound, for bounds from 1, 2^-4, 2^-8, 2^-12 times the largest value on, and below\n");
    for (size_t subject = 0; subject < subjects().size(); ++subject) {
      for (int size = kSizes; size--;)
        std::fprintf(stderr, "%-10.2g", ratio[subject][size]);
      std::fprintf(stderr, "%zu inputs of %s\n", inputs[subject], subjects()[subject].spec().name().c_str());
    }
  }
} summary;

/// Reads what libFuzzer gives; zeros when there is no more.
class Bytes {
public:
  Bytes(const uint8_t *data, size_t size) : data(data), size(size) {}

  template <typename T> T take() {
    T value = {};
    size_t count = std::min(sizeof(T), size);
    std::memcpy(&value, data, count);
    data += count;
    size -= count;
    return value;
  }
  bool empty() const { return !size; }

private:
  const uint8_t *data;
  size_t size;
};

#pragma pack(push, 1)
struct Header {
  uint8_t subject, tokens, sources; // tokens 0: those of the case; sources: two bits each for q, k and v
  uint32_t seed;
};
#pragma pack(pop)

HeadInputs caseOf(const Spec &spec, const Subject &subject, const Header &header, Bytes bytes) {
  std::vector<double> stream;
  while (!bytes.empty())
    stream.push_back(spec.element == "f32" ? double(bytes.take<float>()) : widen(bytes.take<uint16_t>(), spec.storage()));
  HeadInputs in = makeCase(spec, subject, header.seed);
  in.tokens = header.tokens ? header.tokens : in.tokens;
  int source = header.sources;
  size_t offset = 0;
  for (auto [values, count] : {std::pair(&in.q, in.heads * in.keyDim), std::pair(&in.k, in.tokens * in.keyDim), std::pair(&in.v, in.tokens * in.valueDim)}) {
    std::vector<double> given = *values;
    values->resize(count);
    for (int64_t i = 0; i < count; ++i)
      (*values)[i] = given[i % given.size()];
    for (size_t i = 0; i < stream.size() && source & 2; ++i) // strewn
      (*values)[i * 2654435761u % count] = stream[i];
    for (int64_t i = 0; i < count && (source & 3) == 1 && !stream.empty(); ++i)
      (*values)[i] = stream[(offset + i) % stream.size()];
    offset += count;
    source >>= 2;
  }
  return in;
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  Bytes bytes(data, size);
  auto header = bytes.take<Header>();
  size_t subject = header.subject % subjects().size();
  const Kernel &kernel = kernelOf(subjects()[subject].spec());
  if (!kernel) {
    std::fprintf(stderr, "expected %s to compile, got %s\n", kernel.spec.name().c_str(), aligned_last_error());
    std::exit(1);
  }
  const HeadInputs in = caseOf(kernel.spec, subjects()[subject], header, bytes);
  const Outcome outcome = kernel.run({in}, false);
  const auto [ratio, bound] = outcome.failed ? Closeness{NAN, NAN} : closeness(in, outcome);
  if (!(ratio <= 1)) {
    std::fprintf(stderr, "expected an error within its bound, got error / bound = %g: %s, %lld tokens; the input reproduces it\n", ratio, kernel.spec.name().c_str(),
                 static_cast<long long>(in.tokens));
    std::abort();
  }
  ++summary.inputs[subject];
  if (ratio > 0) {
    int size = stepOf(bound, 1.0 / kOctavesPerSize, kSizes - 1);
    summary.ratio[subject][size] = std::max(summary.ratio[subject][size], ratio);
    steps[subject][size][stepOf(ratio, kStepsPerOctave, kSteps - 1)] = 1;
  }
  return 0;
}
