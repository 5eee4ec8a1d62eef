// See the header for the idea.
#include "HeadPolicies.h"

#include <cmath>

using namespace mlir;
using namespace aligned;

Val aligned::wholePlanes(Val layers, Val resident, PlanesAttr split) {
  Emitter &e = *layers.e;
  auto limited = [&](Val layers) { return min(layers, layers.lanes() ? e.splat(resident, layers.lanes()) : resident); };
  if (llvm::all_of(split.getWidths(), [](int64_t width) { return width == 4; })) // each layer is a plane
    return limited(layers);
  Val rounded = e.constant(layers.type(), 0);
  for (int64_t plane = 0; plane < split.getResident(); ++plane) {
    Val needed = layers > split.getFirstLayer(plane);
    rounded = select(needed, e.constant(layers.type(), split.getFirstLayer(plane + 1)), rounded);
  }
  return limited(rounded);
}

static LimitsAttr limitsOf(PolicyAttr policy, CacheRole side) {
  LimitsAttr limits = policy.getLimits(side);
  return limits ? limits : LimitsAttr::get(policy.getContext(), FloatAttr(), BitRange(), 0, 0, ArrayRef<AgeBits>());
}

Val HeadPolicies::number(Type type, function_ref<double(PolicyAttr)> of) const {
  Emitter &e = *head.e;
  Val result = e.constant(type, of(policies.front()));
  for (auto [index, policy] : llvm::enumerate(policies))
    if (double own = of(policy); own != of(policies.front()))
      result = select(head == index, e.constant(type, own), result);
  return result;
}

Val HeadPolicies::tolerance(CacheRole side) const {
  return number(head.e->f32(), [&](PolicyAttr policy) { return policy.getTolerance(side); });
}

bool HeadPolicies::areLimited(ArrayRef<PolicyAttr> policies, CacheRole side) {
  return llvm::any_of(policies, [&](PolicyAttr policy) {
    LimitsAttr limits = limitsOf(policy, side);
    return !(limits.getBits() == BitRange()) || limits.getNewest() || limits.getSinks() || !limits.getAges().empty();
  });
}

Val HeadPolicies::limit(Val layers, CacheRole side, Val resident, Val tokens, Val first, Val last) const {
  Emitter &e = *layers.e;
  PlanesAttr split = side == CacheRole::Key ? keyPlanes : valuePlanes;
  auto whole = [&](int64_t bits) { // of float formats, the first plane is always read
    int64_t plane = split.getKind() == FormatKind::Float ? 1 : 0;
    while (4 * split.getFirstLayer(plane) < bits)
      ++plane;
    return split.getFirstLayer(plane);
  };
  auto splat = [&](Val number) { return layers.lanes() ? e.splat(number, layers.lanes()) : number; };
  auto tokensOf = [&](llvm::function_ref<int64_t(LimitsAttr)> of) { // caches have fewer tokens than 2^30
    return splat(number(e.i32(), [&](PolicyAttr policy) { return std::min<int64_t>(of(limitsOf(policy, side)), 1 << 30); }));
  };
  auto layersOf = [&](llvm::function_ref<int64_t(LimitsAttr)> bits) {
    return splat(number(e.i32(), [&](PolicyAttr policy) { return whole(bits(limitsOf(policy, side))); }));
  };
  size_t steps = 0;
  for (PolicyAttr policy : policies)
    steps = std::max(steps, limitsOf(policy, side).getAges().size());

  Val age = splat(tokens - 1) - last;
  Val limited = max(layers, layersOf([](LimitsAttr limits) { return limits.getBits().least; }));
  limited = min(limited, layersOf([](LimitsAttr limits) { return limits.getBits().most; }));
  for (size_t step = 0; step < steps; ++step) { // a head with fewer of them repeats none: an age that no token has
    Val from = tokensOf([&](LimitsAttr limits) { return step < limits.getAges().size() ? limits.getAges()[step].age : INT64_MAX; });
    Val most = layersOf([&](LimitsAttr limits) { return step < limits.getAges().size() ? limits.getAges()[step].bits : 16; });
    limited = select(age >= from, min(limited, most), limited);
  }
  Val all = splat(resident);
  Val isExact = (first < tokensOf([](LimitsAttr limits) { return limits.getSinks(); })) | (age < tokensOf([](LimitsAttr limits) { return limits.getNewest(); }));
  return select(isExact, all, min(limited, all));
}
