// For the tests of the emulator: PTX around a few instructions, and values that are worth trying.

#pragma once

#include "Machine.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

namespace aligned::emulator {

inline const char *const header = ".version 8.0\n.target sm_90\n.address_size 64\n";

/// A kernel `k` of `count` pointers p0, p1, ... that finds them in %p0, ..., and its thread in %tid. Predicates, registers of 16,
/// 32 and 64 bits are %q, %h, %r and %w.
inline std::string kernel(unsigned count, const std::string &body, const std::string &declarations = "") {
  std::string text = std::string(header) + declarations + ".visible .entry k(";
  for (unsigned i = 0; i < count; ++i)
    text += (i ? ", " : "") + std::string(".param .u64 p") + std::to_string(i);
  text += ") {\n.reg .pred %q<16>; .reg .b16 %h<16>; .reg .b32 %r<64>; .reg .b64 %w<16>; .reg .b32 %tid;\n.reg .b64 %p<8>;\n"
          "mov.u32 %tid, %tid.x;\n";
  for (unsigned i = 0; i < count; ++i)
    text += "ld.param.u64 %p" + std::to_string(i) + ", [p" + std::to_string(i) + "];\n";
  return text + body + "\nret;\n}\n";
}

/// The program, or a failure that shows what is wrong with it.
inline std::unique_ptr<Program> loaded(Machine &machine, const std::string &text) {
  std::string error;
  auto program = machine.load(text, error);
  EXPECT_TRUE(program) << error << "\n" << text;
  return program;
}

template <typename T> uint64_t upload(Machine &machine, const std::vector<T> &values, const char *name) {
  uint64_t address = machine.allocate(std::max<size_t>(values.size(), 1) * sizeof(T), name);
  EXPECT_TRUE(machine.write(address, values.data(), values.size() * sizeof(T)));
  return address;
}
template <typename T> std::vector<T> download(Machine &machine, uint64_t address, size_t count) {
  std::vector<T> values(count);
  EXPECT_TRUE(machine.read(values.data(), address, count * sizeof(T)));
  return values;
}

/// Numbers that have gone wrong somewhere, and some that are just odd.
template <typename T> std::vector<T> oddValues() {
  std::vector<T> values;
  std::mt19937_64 random(5);
  if constexpr (std::is_floating_point_v<T>) {
    using Limits = std::numeric_limits<T>;
    for (T x : {T(0),
                T(1),
                T(1.5),
                T(3),
                T(0.1),
                T(1e-3),
                T(12345.678),
                T(65504),
                T(65520),
                T(4294967296.0),
                Limits::min(),
                Limits::max(),
                Limits::denorm_min(),
                Limits::min() / 3,
                Limits::infinity(),
                Limits::epsilon(),
                T(2.5),
                T(0.5),
                T(255.5),
                T(2147483648.0)}) {
      values.push_back(x);
      values.push_back(-x);
    }
    values.push_back(Limits::quiet_NaN());
    for (int i = 0; i < 12; ++i)
      values.push_back(std::ldexp(T(random() >> 11) + 1, int(random() % 60) - 80));
  } else {
    using Limits = std::numeric_limits<T>;
    for (T x : {T(0), T(1), T(-1), T(2), T(3), T(7), T(31), T(32), T(33), T(64), T(255), T(-128), Limits::max(), Limits::min(),
                T(Limits::max() / 3), T(Limits::max() - 1), T(Limits::min() + 1)})
      values.push_back(x);
    for (int i = 0; i < 12; ++i)
      values.push_back(T(random() >> (random() % 60)));
  }
  return values;
}

/// Executes `instruction`, which reads %a, %b, %c and writes %d, for all triples of values; unneeded operands have a single one.
template <typename D, typename A, typename B, typename C>
std::vector<D> evaluate(const std::string &instruction, const std::vector<A> &a, const std::vector<B> &b,
                        const std::vector<C> &c) {
  auto bits = [](size_t bytes) { return std::to_string(bytes * 8); };
  // Registers of 8 bits are not read and written by most instructions.
  auto reg = [&](size_t bytes) { return bits(std::max<size_t>(bytes, 2)); };
  std::string body = ".reg .b" + reg(sizeof(A)) + " %a; .reg .b" + reg(sizeof(B)) + " %b; .reg .b" + reg(sizeof(C)) +
                     " %c; .reg .b" + reg(sizeof(D)) + " %d;\nmov.u32 %r0, %ctaid.x;\nmad.lo.u32 %r0, %r0, 128, %tid;\n";
  const char *names[] = {"%a", "%b", "%c"};
  const size_t sizes[] = {sizeof(A), sizeof(B), sizeof(C)};
  for (int i = 0; i < 3; ++i)
    body += "mad.wide.u32 %w0, %r0, " + std::to_string(sizes[i]) + ", %p" + std::to_string(i + 1) + ";\nld.global.b" +
            bits(sizes[i]) + " " + names[i] + ", [%w0];\n";
  body += instruction + "\nmad.wide.u32 %w0, %r0, " + std::to_string(sizeof(D)) + ", %p0;\nst.global.b" + bits(sizeof(D)) +
          " [%w0], %d;\n";
  size_t count = a.size() * b.size() * c.size(), blocks = (count + 127) / 128;
  std::vector<A> as(blocks * 128);
  std::vector<B> bs(blocks * 128);
  std::vector<C> cs(blocks * 128);
  for (size_t i = 0; i < count; ++i)
    as[i] = a[i / c.size() / b.size()], bs[i] = b[i / c.size() % b.size()], cs[i] = c[i % c.size()];
  Machine machine;
  auto program = loaded(machine, kernel(4, body));
  if (!program)
    return std::vector<D>(count);
  uint64_t out = machine.allocate(blocks * 128 * sizeof(D), "out");
  bool success = machine.launch(
      *program, "k", {uint32_t(blocks)}, {128},
      Arguments().add(out).add(upload(machine, as, "a")).add(upload(machine, bs, "b")).add(upload(machine, cs, "c")));
  EXPECT_TRUE(success) << machine.error();
  return download<D>(machine, out, count);
}

template <typename T> bool same(T a, T b) {
  if constexpr (std::is_floating_point_v<T>)
    if (a != a)
      return b != b;
  return !std::memcmp(&a, &b, sizeof a);
}

/// Compares an instruction with a function of C++ at all pairs or triples of odd values, of which `valid` may leave out some.
template <typename D, typename A, typename F>
void expectUnary(const std::string &instruction, F f, std::vector<A> as = oddValues<A>()) {
  auto got = evaluate<D>(instruction, as, std::vector<uint32_t>{0}, std::vector<uint32_t>{0});
  for (size_t i = 0; i < as.size(); ++i) {
    D want = f(as[i]);
    ASSERT_TRUE(same(got[i], want)) << instruction << " of " << +as[i] << ": got " << +got[i] << ", expected " << +want;
  }
}
template <typename D, typename A, typename B, typename F>
void expectBinary(const std::string &instruction, F f, std::vector<A> as = oddValues<A>(), std::vector<B> bs = oddValues<B>()) {
  auto got = evaluate<D>(instruction, as, bs, std::vector<uint32_t>{0});
  for (size_t i = 0; i < got.size(); ++i) {
    A a = as[i / bs.size()];
    B b = bs[i % bs.size()];
    D want = f(a, b);
    ASSERT_TRUE(same(got[i], want)) << instruction << " of " << +a << ", " << +b << ": got " << +got[i] << ", expected " << +want;
  }
}
template <typename D, typename A, typename B, typename C, typename F>
void expectTernary(const std::string &instruction, F f, std::vector<A> as = oddValues<A>(), std::vector<B> bs = oddValues<B>(),
                   std::vector<C> cs = oddValues<C>()) {
  auto got = evaluate<D>(instruction, as, bs, cs);
  for (size_t i = 0; i < got.size(); ++i) {
    A a = as[i / cs.size() / bs.size()];
    B b = bs[i / cs.size() % bs.size()];
    C c = cs[i % cs.size()];
    D want = f(a, b, c);
    ASSERT_TRUE(same(got[i], want)) << instruction << " of " << +a << ", " << +b << ", " << +c << ": got " << +got[i]
                                    << ", expected " << +want;
  }
}

/// "u32" for uint32_t.
template <typename T> std::string typeName() {
  return (std::is_floating_point_v<T> ? "f" : std::is_signed_v<T> ? "s" : "u") + std::to_string(sizeof(T) * 8);
}

} // namespace aligned::emulator
