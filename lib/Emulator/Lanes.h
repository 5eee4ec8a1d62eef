// Loops over the lanes of a warp. Results are made for all lanes, also for those that take no part, and only then stored, so that
// the loops have no branches and the compiler turns them into vector instructions.

#pragma once

#include "Code.h"

namespace aligned::emulator {

template <typename T> T laneOf(const uint8_t *reg, unsigned lane) {
  T value;
  std::memcpy(&value, reg + lane * sizeof(T), sizeof(T));
  return value;
}
template <typename T> T laneOf(const Warp &warp, uint32_t reg, unsigned lane) { return laneOf<T>(warp.file + reg, lane); }
template <typename T> void setLane(Warp &warp, uint32_t reg, unsigned lane, T value) {
  std::memcpy(warp.file + reg + lane * sizeof(T), &value, sizeof(T));
}

inline Mask predicate(const Warp &warp, uint32_t reg) { return laneOf<Mask>(warp.file + reg, 0); }
inline void setPredicate(Warp &warp, uint32_t reg, Mask value, Mask active) {
  setLane<Mask>(warp, reg, 0, (predicate(warp, reg) & ~active) | (value & active));
}

template <typename T> void put(Warp &warp, uint32_t reg, const T (&values)[warpSize], Mask active) {
  uint8_t *to = warp.file + reg;
  if (active == allLanes) {
    std::memcpy(to, values, sizeof values);
    return;
  }
  for (unsigned i = 0; i < warpSize; ++i) {
    T value = (active >> i & 1) ? values[i] : laneOf<T>(to, i);
    std::memcpy(to + i * sizeof(T), &value, sizeof(T));
  }
}

template <typename A, typename D, typename F> void map(Warp &warp, const Step &step, Mask active, F f) {
  const uint8_t *a = warp.file + step.a;
  D result[warpSize];
  for (unsigned i = 0; i < warpSize; ++i)
    result[i] = f(laneOf<A>(a, i));
  put(warp, step.d, result, active);
}

template <typename A, typename B, typename D, typename F> void map(Warp &warp, const Step &step, Mask active, F f) {
  const uint8_t *a = warp.file + step.a, *b = warp.file + step.b;
  D result[warpSize];
  for (unsigned i = 0; i < warpSize; ++i)
    result[i] = f(laneOf<A>(a, i), laneOf<B>(b, i));
  put(warp, step.d, result, active);
}

template <typename A, typename B, typename C, typename D, typename F> void map(Warp &warp, const Step &step, Mask active, F f) {
  const uint8_t *a = warp.file + step.a, *b = warp.file + step.b, *c = warp.file + step.c;
  D result[warpSize];
  for (unsigned i = 0; i < warpSize; ++i)
    result[i] = f(laneOf<A>(a, i), laneOf<B>(b, i), laneOf<C>(c, i));
  put(warp, step.d, result, active);
}

/// The lanes for which `f` holds.
template <typename A, typename B, typename F> Mask lanesWhere(const Warp &warp, uint32_t regA, uint32_t regB, F f) {
  const uint8_t *a = warp.file + regA, *b = warp.file + regB;
  uint8_t truth[warpSize];
  for (unsigned i = 0; i < warpSize; ++i)
    truth[i] = f(laneOf<A>(a, i), laneOf<B>(b, i));
  Mask result = 0;
  for (unsigned i = 0; i < warpSize; i += 8) {
    uint64_t bytes;
    std::memcpy(&bytes, truth + i, 8);
    result |= Mask(bytes * 0x0102040810204080 >> 56) << i;
  }
  return result;
}

} // namespace aligned::emulator
