// Loads, stores, atomics, asynchronous copies, what is counted about them, and accesses that are wrong.

#include "Support.h"

#include <algorithm>

using namespace aligned::emulator;

namespace {

TEST(Memory, Widths) {
  // Loads extend by their sign, stores cut.
  Machine machine;
  auto program = loaded(
      machine,
      kernel(2,
             "ld.global.s8 %r1, [%p0+5];\nst.global.u32 [%p1], %r1;\nld.global.u8 %r1, [%p0+5];\nst.global.u32 [%p1+4], %r1;\n"
             "ld.global.s16 %w1, [%p0+6];\nst.global.u64 [%p1+8], %w1;\nld.global.v2.u16 {%h1, %r2}, [%p0+4];\nst.global.u16 "
             "[%p1+16], %h1;\nst.global.u16 [%p1+18], %r2;\n"
             "ld.global.v4.u8 {%r1, %r2, %r3, %r4}, [%p0];\nst.global.v4.u8 [%p1+20], {%r4, %r3, %r2, %r1};\n"
             "ld.global.v2.b64 {%w1, %w2}, [%p0];\nst.global.v2.b64 [%p1+32], {%w2, %w1};\nst.global.u8 [%p1+24], 300;\n"
             "add.u64 %w3, %p0, 16;\nld.global.nc.L1::no_allocate.L2::128B.b32 %r1, [%w3+-4];\nst.global.cs.b32 [%p1+28], %r1;\n"
             "ld.global.v4.b64 {%w1, %w2, %w3, %w4}, [%p0];\nst.global.v4.b64 [%p1+64], {%w4, %w3, %w2, %w1};\n"
             "ld.global.nc.L1::no_allocate.L2::256B.v4.b32 {%r1, _, %r3, %r4}, [%p0+16];\nst.volatile.global.v4.b32 [%p1+96], {%r4, %r3, %r3, %r1};\n"
             "ld.global.nc.L1::no_allocate.v2.b64 {%w1, %w2}, [%p0];\nst.global.v2.b64 [%p1+112], {%w2, %w1};"));
  std::vector<uint8_t> in(32), want(128, 0xee);
  for (size_t i = 0; i < 32; ++i)
    in[i] = uint8_t(0xf0 - 9 * i);
  uint64_t out = upload(machine, want, "out");
  ASSERT_TRUE(machine.launch(*program, "k", {1}, {1}, Arguments().add(upload(machine, in, "in")).add(out))) << machine.error();
  auto got = download<uint8_t>(machine, out, 128);
  auto put = [&](size_t at, auto value) { std::memcpy(&want[at], &value, sizeof value); };
  uint16_t half;
  std::memcpy(&half, &in[6], 2);
  put(0, int32_t(int8_t(in[5])));
  put(4, uint32_t(in[5]));
  put(8, int64_t(int16_t(half)));
  std::copy_n(&in[4], 4, &want[16]);
  std::reverse_copy(&in[0], &in[4], &want[20]);
  want[24] = uint8_t(300);
  std::copy_n(&in[12], 4, &want[28]);
  std::copy_n(&in[8], 8, &want[32]);
  std::copy_n(&in[0], 8, &want[40]);
  for (size_t i = 0; i < 4; ++i)
    std::copy_n(&in[24 - 8 * i], 8, &want[64 + 8 * i]);
  size_t words[] = {28, 24, 24, 16};
  for (size_t i = 0; i < 4; ++i)
    std::copy_n(&in[words[i]], 4, &want[96 + 4 * i]);
  std::copy_n(&in[8], 8, &want[112]);
  std::copy_n(&in[0], 8, &want[120]);
  EXPECT_EQ(got, want);
}

TEST(Memory, Variables) {
  // Initialised arrays, a pointer to one, constants, dynamic shared and local memory through generic addresses.
  Machine machine;
  std::string declarations =
      ".global .align 4 .u32 table[4] = {10, 0x14, 30};\n.const .align 8 .b8 bytes[8] = {1, 2, 3, 4, 5, 6, 7, 8};\n"
      ".global .align 8 .u64 pointer = table+4;\n.global .f32 real = 0f40490FDB;\n.extern .shared .align 16 .b8 dynamic[];\n";
  auto program = loaded(machine, kernel(1,
                                        ".local .align 8 .b8 depot[16];\n"
                                        "ld.global.u64 %w1, [pointer];\nld.global.u32 %r1, [%w1];\nst.global.u32 [%p0], %r1;\n"
                                        "mov.u64 %w1, table;\nld.u32 %r1, [%w1+8];\nst.global.u32 [%p0+4], %r1;\nld.global.u32 "
                                        "%r1, [table+12];\nst.global.u32 [%p0+8], %r1;\n"
                                        "ld.const.u16 %h1, [bytes+2];\ncvt.u32.u16 %r1, %h1;\nst.global.u32 [%p0+12], "
                                        "%r1;\nld.global.u32 %r1, [real];\nst.global.u32 [%p0+16], %r1;\n"
                                        "mov.u32 %r1, %dynamic_smem_size;\nst.global.u32 [%p0+20], %r1;\n"
                                        "mov.u64 %w1, dynamic;\ncvta.shared.u64 %w2, %w1;\nst.u32 [%w2+60], 77;\nld.shared.u32 "
                                        "%r1, [dynamic+60];\nst.global.u32 [%p0+24], %r1;\n"
                                        "mov.u64 %w1, depot;\ncvta.local.u64 %w2, %w1;\nst.local.u32 [%w1+4], 88;\nld.u32 %r1, "
                                        "[%w2+4];\nst.global.u32 [%p0+28], %r1;\n"
                                        "isspacep.shared %q0, %w2;\nisspacep.local %q1, %w2;\nisspacep.global %q2, %p0;\n"
                                        "selp.u32 %r1, 1, 0, %q0;\nselp.u32 %r2, 2, 0, %q1;\nselp.u32 %r3, 4, 0, %q2;\nor.b32 "
                                        "%r1, %r1, %r2;\nor.b32 %r1, %r1, %r3;\nst.global.u32 [%p0+32], %r1;",
                                        declarations));
  ASSERT_TRUE(program);
  uint64_t out = machine.allocate(36), size = 0;
  ASSERT_TRUE(machine.launch(*program, "k", {1}, {1}, Arguments().add(out), 64)) << machine.error();
  EXPECT_EQ(download<uint32_t>(machine, out, 9), (std::vector<uint32_t>{20, 30, 0, 0x0403, 0x40490fdb, 64, 77, 88, 6}));
  EXPECT_NE(program->variable("table", &size), 0);
  EXPECT_EQ(size, 16);
  // Of static shared memory there are 48 KiB, and of all some more.
  EXPECT_FALSE(machine.launch(*program, "k", {1}, {1}, Arguments().add(out), 228 << 10));
  EXPECT_EQ(machine.fault(), Fault::Argument);
}

TEST(Memory, Parameters) {
  Machine machine;
  auto program = loaded(
      machine, std::string(header) +
                   ".visible .entry k(.param .u64 .ptr .global .align 16 k_param_0, .param .align 2 .b8 k_param_1[2], .param .u8 "
                   "k_param_2,\n.param .f64 k_param_3, .param .align 4 .b8 k_param_4[12])\n"
                   ".maxntid 32, 1, 1\n.minnctapersm 2\n{\n.reg .b64 %rd<4>; .reg .b16 %rs<2>; .reg .b32 %r<8>;\nld.param.u64 "
                   "%rd1, [k_param_0];\n"
                   "ld.param.b16 %rs1, [k_param_1];\nst.global.u16 [%rd1], %rs1;\nld.param.s8 %r1, [k_param_2];\nst.global.u32 "
                   "[%rd1+4], %r1;\n"
                   "ld.param.b64 %rd2, [k_param_3];\nst.global.b64 [%rd1+8], %rd2;\nld.param.v2.b32 {%r2, %r3}, "
                   "[k_param_4+0];\nmov.b64 %rd3, k_param_4;\ncvta.param.u64 %rd3, %rd3;\n"
                   "ld.b32 %r4, [%rd3+8];\nst.global.v2.b32 [%rd1+16], {%r3, %r4};\nst.global.b32 [%rd1+24], %r2;\nret;\n}\n");
  ASSERT_TRUE(program);
  uint64_t out = upload(machine, std::vector<uint32_t>(8), "out");
  std::array<int32_t, 3> triple{11, 22, 33};
  ASSERT_TRUE(
      machine.launch(*program, "k", {1}, {1}, Arguments().add(out).add(uint16_t(0xabcd)).add(int8_t(-3)).add(1.5).add(triple)))
      << machine.error();
  EXPECT_EQ(download<uint32_t>(machine, out, 7), (std::vector<uint32_t>{0xabcd, uint32_t(-3), 0, 0x3ff80000, 22, 33, 11}));
  EXPECT_FALSE(
      machine.launch(*program, "k", {1}, {64}, Arguments().add(out).add(uint16_t(0)).add(int8_t(0)).add(1.5).add(triple)))
      << "beyond .maxntid";
  EXPECT_FALSE(machine.launch(*program, "k", {1}, {1}, Arguments().add(out))) << "arguments are missing";
  EXPECT_FALSE(machine.launch(*program, "other", {1}, {1}, Arguments().add(out)));
}

TEST(Memory, Functions) {
  // A function that is called twice, once under a guard.
  Machine machine;
  auto program =
      loaded(machine, std::string(header) +
                          ".func (.param .b32 result) twice(.param .b32 value)\n;\n"
                          ".func (.param .b32 result) twice(.param .b32 value) {\n.reg .b32 %r<4>; .reg .pred %q;\nld.param.b32 "
                          "%r1, [value];\nsetp.gt.u32 %q, %r1, 20;\n@%q bra BIG;\n"
                          "shl.b32 %r1, %r1, 1;\nst.param.b32 [result], %r1;\nret;\nBIG: st.param.b32 [result+0], 99;\nret;\n}\n"
                          ".visible .entry k(.param .u64 p) {\n.reg .b64 %w<3>; .reg .b32 %r<4>; .reg .pred %q;\nld.param.u64 "
                          "%w1, [p];\nmov.u32 %r1, %tid.x;\nmad.wide.u32 %w1, %r1, 4, %w1;\n"
                          "{ .param .b32 x; .param .b32 y; st.param.b32 [x+0], %r1; call.uni (y), twice, (x); ld.param.b32 %r2, "
                          "[y+0]; }\nsetp.lt.u32 %q, %r1, 3;\n"
                          "{ .param .b32 x2; .param .b32 y2; st.param.b32 [x2], %r2; @%q call (y2), twice, (x2); @%q "
                          "ld.param.b32 %r2, [y2]; }\nst.global.u32 [%w1], %r2;\nret;\n}\n");
  ASSERT_TRUE(program);
  uint64_t out = machine.allocate(128);
  ASSERT_TRUE(machine.launch(*program, "k", {1}, {32}, Arguments().add(out))) << machine.error();
  auto got = download<uint32_t>(machine, out, 32);
  for (uint32_t i = 0; i < 32; ++i)
    EXPECT_EQ(got[i], i < 3 ? 4 * i : i > 20 ? 99 : 2 * i);
}

TEST(Memory, JumpTables) {
  Machine machine;
  auto program = loaded(machine, kernel(1, "and.b32 %r1, %tid, 3;\nT: .branchtargets A, B, C, A;\nbrx.idx %r1, T;\nA: mov.u32 "
                                           "%r2, 1;\nbra END;\nB: mov.u32 %r2, 2;\nbra END;\nC: mov.u32 %r2, 3;\n"
                                           "END: mad.wide.u32 %w1, %tid, 4, %p0;\nst.global.u32 [%w1], %r2;"));
  ASSERT_TRUE(program);
  uint64_t out = machine.allocate(128);
  ASSERT_TRUE(machine.launch(*program, "k", {1}, {32}, Arguments().add(out))) << machine.error();
  auto got = download<uint32_t>(machine, out, 32);
  for (uint32_t i = 0; i < 32; ++i)
    EXPECT_EQ(got[i], i % 4 == 1 ? 2u : i % 4 == 2 ? 3u : 1u);
}

//===----------------------------------------------------------------------===//
// Atomics
//===----------------------------------------------------------------------===//

template <typename T> void checkAtomic(const std::string &name, T start, std::vector<T> operands, T (*f)(T, T)) {
  // Every thread of two blocks has one operand; what comes out does not depend on the order, nor do all the old values together.
  std::string size = std::to_string(sizeof(T)), bits = std::to_string(sizeof(T) * 8), reg = sizeof(T) == 8 ? "%w" : "%r";
  for (bool shared : {false, true}) {
    std::string body = "mov.u32 %r0, %ctaid.x;\nmad.lo.u32 %r0, %r0, 64, %tid;\nmad.wide.u32 %w1, %r0, " + size +
                       ", %p1;\nld.global.b" + bits + " " + reg + "4, [%w1];\nmad.wide.u32 %w2, %r0, " + size + ", %p2;\n";
    if (!shared)
      body += "atom.global." + name + " " + reg + "5, [%p0], " + reg + "4;\nst.global.b" + bits + " [%w2], " + reg +
              "5;\nred.global." + name + " [%p0+8], " + reg + "4;";
    else
      body += "setp.eq.u32 %q0, %tid, 0;\n@%q0 ld.global.b" + bits + " " + reg + "6, [%p0];\n@%q0 st.shared.b" + bits + " [s], " +
              reg + "6;\nbar.sync 0;\natom.shared." + name + " " + reg + "5, [s], " + reg + "4;\nst.global.b" + bits +
              " [%w2], " + reg + "5;\nbar.sync 0;\nld.shared.b" + bits + " " + reg + "6, [s];\n@%q0 st.global.b" + bits +
              " [%p0+8], " + reg + "6;";
    Machine machine;
    auto program = loaded(machine, kernel(3, body, ".shared .align 8 .b8 s[8];\n"));
    ASSERT_TRUE(program);
    operands.resize(128, operands[0]);
    std::array<T, 2> cells{start, start};
    if (sizeof(T) == 4) {
      std::vector<T> four(4, start);
      uint64_t at = upload(machine, four, "cells");
      uint64_t old = machine.allocate(128 * sizeof(T), "old");
      ASSERT_TRUE(machine.launch(*program, "k", {shared ? 1u : 2u}, {64},
                                 Arguments().add(at).add(upload(machine, operands, "in")).add(old)))
          << machine.error();
      four = download<T>(machine, at, 4);
      cells = {four[0], four[2]};
    } else {
      std::vector<T> two(2, start);
      uint64_t at = upload(machine, two, "cells");
      uint64_t old = machine.allocate(128 * sizeof(T), "old");
      ASSERT_TRUE(machine.launch(*program, "k", {shared ? 1u : 2u}, {64},
                                 Arguments().add(at).add(upload(machine, operands, "in")).add(old)))
          << machine.error();
      two = download<T>(machine, at, 2);
      cells = {two[0], two[1]};
    }
    T want = start;
    for (size_t i = 0; i < (shared ? 64 : 128); ++i)
      want = f(want, operands[i]);
    EXPECT_TRUE(same(cells[1], want)) << name << ": got " << +cells[1] << ", expected " << +want;
    if (!shared) {
      EXPECT_TRUE(same(cells[0], want)) << name;
    }
  }
}

TEST(Memory, Atomics) {
  auto u32 = oddValues<uint32_t>();
  auto s32 = oddValues<int32_t>();
  auto u64 = oddValues<uint64_t>();
  auto s64 = oddValues<int64_t>();
  checkAtomic<uint32_t>("add.u32", 5, u32, [](uint32_t a, uint32_t b) { return a + b; });
  checkAtomic<uint32_t>("min.u32", ~0u, u32, [](uint32_t a, uint32_t b) { return std::min(a, b); });
  checkAtomic<int32_t>("max.s32", INT32_MIN, s32, [](int32_t a, int32_t b) { return std::max(a, b); });
  checkAtomic<int32_t>("min.s32", INT32_MAX, s32, [](int32_t a, int32_t b) { return std::min(a, b); });
  checkAtomic<uint32_t>("and.b32", ~0u, {~1u, ~64u, ~0x8000u}, [](uint32_t a, uint32_t b) { return a & b; });
  checkAtomic<uint32_t>("or.b32", 0, {1u, 64u, 0x8000u}, [](uint32_t a, uint32_t b) { return a | b; });
  checkAtomic<uint32_t>("xor.b32", 0, u32, [](uint32_t a, uint32_t b) { return a ^ b; });
  checkAtomic<uint32_t>("inc.u32", 3, {40}, [](uint32_t a, uint32_t b) { return a >= b ? 0 : a + 1; });
  checkAtomic<uint32_t>("dec.u32", 3, {40}, [](uint32_t a, uint32_t b) { return a == 0 || a > b ? b : a - 1; });
  checkAtomic<uint64_t>("add.u64", 5, u64, [](uint64_t a, uint64_t b) { return a + b; });
  checkAtomic<int64_t>("max.s64", INT64_MIN, s64, [](int64_t a, int64_t b) { return std::max(a, b); });
  checkAtomic<float>("add.f32", 1, {0.5f, 2.0f, -3.25f}, [](float a, float b) { return a + b; });
  checkAtomic<double>("add.f64", 1, {0.5, 2.0, -3.25}, [](double a, double b) { return a + b; });
  checkAtomic<uint32_t>("add.noftz.f16x2", 0, {0x3c004000}, [](uint32_t a, uint32_t) { // 1 and 2, up to 128 times
    static const std::vector<uint32_t> values = [] {
      std::vector<uint32_t> list;
      for (int i = 0; i <= 128; ++i) {
        auto half = [](int x) {
          return x ? uint32_t((std::ilogb(double(x)) + 15) << 10 | ((x << 10 >> std::ilogb(double(x))) & 0x3ff)) : 0;
        };
        list.push_back(half(i) << 16 | half(2 * i));
      }
      return list;
    }();
    return values[size_t(std::find(values.begin(), values.end(), a) - values.begin()) + 1];
  });
}

TEST(Memory, Exchanges) {
  // A lock-free stack of one: every value is taken by exactly one thread.
  Machine machine;
  auto program =
      loaded(machine, kernel(2, "add.u32 %r1, %tid, 100;\natom.global.exch.b32 %r2, [%p0], %r1;\nmad.wide.u32 %w1, %tid, 4, "
                                "%p1;\nst.global.u32 [%w1], %r2;\n"
                                // Counts by compare and swap.
                                "LOOP: ld.relaxed.gpu.global.u32 %r3, [%p0+4];\nadd.u32 %r4, %r3, 1;\natom.global.cas.b32 %r5, "
                                "[%p0+4], %r3, %r4;\nsetp.ne.u32 %q0, %r5, %r3;\n@%q0 bra LOOP;"));
  ASSERT_TRUE(program);
  uint64_t cell = upload(machine, std::vector<uint32_t>{7, 0}, "cell"), out = machine.allocate(64 * 4);
  ASSERT_TRUE(machine.launch(*program, "k", {1}, {64}, Arguments().add(cell).add(out))) << machine.error();
  auto got = download<uint32_t>(machine, out, 64), cells = download<uint32_t>(machine, cell, 2);
  got.push_back(cells[0]);
  std::sort(got.begin(), got.end());
  EXPECT_EQ(got[0], 7);
  for (uint32_t i = 0; i < 64; ++i)
    EXPECT_EQ(got[i + 1], 100 + i);
  EXPECT_EQ(cells[1], 64);
}

//===----------------------------------------------------------------------===//
// Asynchronous copies
//===----------------------------------------------------------------------===//

TEST(Memory, AsynchronousCopies) {
  auto run = [](const std::string &wait, std::vector<uint32_t> &got, bool races = true) {
    Machine machine;
    machine.options.races = races;
    auto program =
        loaded(machine, kernel(2,
                               "mad.wide.u32 %w1, %tid, 16, %p0;\nmov.u32 %r0, s;\nmad.lo.u32 %r1, %tid, 16, "
                               "%r0;\nst.shared.v4.u32 [%r1], {1, 2, 3, 4};\nst.shared.v4.u32 [%r1+512], {1, 2, 3, 4};\n"
                               "cp.async.cg.shared.global [%r1], [%w1], 16;\ncp.async.commit_group;\n"
                               "cp.async.ca.shared.global [%r1+512], [%w1+8], 8, 4;\ncp.async.commit_group;\n" +
                                   wait +
                                   "\nbar.sync 0;\nxor.b32 %r2, %tid, 1;\nmad.lo.u32 %r2, %r2, 16, %r0;\nld.shared.v2.u32 {%r3, "
                                   "%r4}, [%r2];\nld.shared.v2.u32 {%r5, %r6}, [%r2+512];\n"
                                   "mad.wide.u32 %w2, %tid, 16, %p1;\nst.global.v4.u32 [%w2], {%r3, %r4, %r5, %r6};",
                               ".shared .align 16 .b8 s[1024];\n"));
    std::vector<uint32_t> in(128);
    for (uint32_t i = 0; i < 128; ++i)
      in[i] = 1000 + i;
    uint64_t out = machine.allocate(512);
    machine.launch(*program, "k", {1}, {32}, Arguments().add(upload(machine, in, "in")).add(out));
    got = download<uint32_t>(machine, out, 128);
    return machine.error();
  };
  std::vector<uint32_t> got;
  EXPECT_EQ(run("cp.async.wait_group 0;", got), "");
  for (uint32_t i = 0; i < 32; ++i) {
    uint32_t other = 1000 + 4 * (i ^ 1);
    EXPECT_EQ((std::vector<uint32_t>{&got[4 * i], &got[4 * i + 4]}),
              (std::vector<uint32_t>{other, other + 1, other + 2, 0})); // cut to 4 bytes, then zero
  }
  // One wait too few: the second copy may arrive at any time, here it is late.
  EXPECT_NE(run("cp.async.wait_group 1;", got).find("race"), std::string::npos);
  EXPECT_EQ(run("cp.async.wait_group 1;", got, false), "");
  for (uint32_t i = 0; i < 32; ++i) {
    uint32_t other = 1000 + 4 * (i ^ 1);
    EXPECT_EQ((std::vector<uint32_t>{&got[4 * i], &got[4 * i + 4]}), (std::vector<uint32_t>{other, other + 1, 1, 2}));
  }
  EXPECT_EQ(run("cp.async.wait_all;", got), "");
  EXPECT_EQ(got[3], 0);
}

//===----------------------------------------------------------------------===//
// Faults
//===----------------------------------------------------------------------===//

struct Outcome {
  bool success;
  Fault fault;
  std::string error;
};
Outcome launch(const std::string &body, uint32_t threads = 32, Options options = Options(), uint64_t second = 0) {
  Machine machine(options);
  auto program = loaded(machine, kernel(2, body, ".shared .align 4 .b8 s[128];\n.shared .align 4 .b8 behind[128];\n"));
  if (!program)
    return {};
  uint64_t data = machine.allocate(128, "data");
  bool success = machine.launch(*program, "k", {1}, {threads}, Arguments().add(data).add(second));
  return {success, machine.fault(), machine.error()};
}
#define EXPECT_FAULT(outcome, kind, ...)                                                                                         \
  do {                                                                                                                           \
    Outcome result = outcome;                                                                                                    \
    EXPECT_FALSE(result.success);                                                                                                \
    EXPECT_EQ(result.fault, kind) << result.error;                                                                               \
    for (const char *part : {__VA_ARGS__})                                                                                       \
      EXPECT_NE(result.error.find(part), std::string::npos) << "expected '" << part << "' in: " << result.error;                 \
  } while (false)

TEST(Faults, OutOfBounds) {
  std::string place = "mad.wide.u32 %w1, %tid, 4, %p0;\n";
  EXPECT_TRUE(launch(place + "st.global.u32 [%w1], 1;").success);
  EXPECT_FAULT(launch(place + "st.global.u32 [%w1], 1;", 33), Fault::Address, "k: line ", "'st.global.u32 [%w1], 1;'",
               "thread (32,0,0) of block (0,0,0)", "out of bounds: write to 4 bytes of global memory at 0x",
               "0 bytes behind the allocation 'data' of 128 bytes");
  EXPECT_FAULT(launch(place + "ld.global.u32 %r1, [%w1+-4];"), Fault::Address, "thread (0,0,0)", "read of 4 bytes",
               "4 bytes before the allocation 'data'");
  EXPECT_FAULT(launch("ld.global.v2.u32 {%r1, %r2}, [%p0+128];", 1), Fault::Address, "8 bytes");
  EXPECT_FAULT(launch("atom.global.add.u32 %r1, [%p0+128], 1;", 1), Fault::Address, "atomic on 4 bytes");
  EXPECT_FAULT(launch("ld.u32 %r1, [%p1];", 1), Fault::Address, "at 0x0"); // a null pointer
  int host = 0;
  EXPECT_FAULT(launch("ld.u32 %r1, [%p1];", 1, Options(), reinterpret_cast<uint64_t>(&host)), Fault::Address, "out of bounds");
  EXPECT_TRUE(
      launch("setp.lt.u32 %q0, %tid, 32;\n" + place + "@%q0 st.global.u32 [%w1], 1;", 64).success); // who does not access may not
}

TEST(Faults, SharedOutOfBounds) {
  std::string place = "mov.u32 %r0, s;\nmad.lo.u32 %r1, %tid, 4, %r0;\nst.shared.u32 [behind], 0;\n";
  EXPECT_TRUE(launch("mov.u32 %r0, s;\nmad.lo.u32 %r1, %tid, 4, %r0;\nst.shared.u32 [%r1], 1;").success);
  EXPECT_FAULT(launch("mov.u32 %r0, s;\nmad.lo.u32 %r1, %tid, 4, %r0;\nst.shared.u32 [%r1], 1;", 33), Fault::Address,
               "thread (32,0,0)", "4 bytes of shared memory", "near 's' of 128 bytes");
  EXPECT_FAULT(launch("ld.shared.u32 %r1, [s+-4];", 1), Fault::Address, "shared memory");
  EXPECT_FAULT(launch("mov.u64 %w1, s;\ncvta.shared.u64 %w1, %w1;\nld.u32 %r1, [%w1+128];", 1), Fault::Address, "shared memory");
  EXPECT_FAULT(launch(".local .align 4 .b8 depot[8];\nmov.u64 %w1, depot;\nst.local.u32 [%w1+8], 1;", 1), Fault::Address,
               "local memory");
}

TEST(Faults, Misaligned) {
  EXPECT_TRUE(launch("ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%p0+16];", 1).success);
  EXPECT_FAULT(launch("ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%p0+8];", 1), Fault::Misaligned,
               "misaligned read of 16 bytes at 0x");
  EXPECT_FAULT(launch("st.shared.u32 [s+2], 0;", 1), Fault::Misaligned, "misaligned write to 4 bytes");
  EXPECT_FAULT(launch("mad.wide.u32 %w1, %tid, 2, %p0;\nld.global.u32 %r1, [%w1];", 2), Fault::Misaligned, "thread (1,0,0)");
}

TEST(Faults, Uninitialised) {
  Options options;
  EXPECT_TRUE(launch("ld.global.u32 %r1, [%p0];", 1).success);
  options.uninitialised = true;
  EXPECT_FAULT(launch("ld.global.u32 %r1, [%p0];", 1, options), Fault::Uninitialised, "uninitialised: read of 4 bytes",
               "'data' + 0", "byte 0 was never written");
  EXPECT_FAULT(launch("st.global.u8 [%p0], 1;\nld.global.u16 %h1, [%p0];", 1, options), Fault::Uninitialised,
               "byte 1 was never written");
  EXPECT_FAULT(launch("ld.shared.u32 %r1, [s];", 1, options), Fault::Uninitialised, "uninitialised");
  EXPECT_TRUE(
      launch("st.global.u32 [%p0], 1;\nld.global.u16 %h1, [%p0+2];\nst.shared.u32 [s], 1;\nld.shared.u32 %r1, [s];", 1, options)
          .success);
}

TEST(Faults, Traps) {
  EXPECT_FAULT(launch("setp.eq.u32 %q0, %tid, 3;\n@%q0 trap;"), Fault::Trap, "thread (3,0,0)");
  EXPECT_TRUE(launch("setp.eq.u32 %q0, %tid, 77;\n@%q0 trap;").success);
  Options options;
  options.instructionLimit = 10000;
  EXPECT_FAULT(launch("LOOP: bra LOOP;", 32, options), Fault::Limit, "still runs after");
}

//===----------------------------------------------------------------------===//
// Counts
//===----------------------------------------------------------------------===//

TEST(Counts, Sectors) {
  // One instruction at each stride; then all of it again, and a store.
  Machine machine;
  auto program = loaded(machine, kernel(3, "mad.wide.u32 %w1, %tid, 4, %p0;\nld.global.u32 %r1, [%w1];\n"
                                           "mad.wide.u32 %w2, %tid, 32, %p0;\nld.global.u32 %r2, [%w2];\n"
                                           "mad.wide.u32 %w3, %tid, 16, %p1;\nld.global.v4.u32 {%r3, %r4, %r5, %r6}, [%w3];\n"
                                           "ld.global.u32 %r7, [%p1];\n"
                                           "setp.lt.u32 %q0, %tid, 3;\n@%q0 ld.global.u8 %h1, [%w2+31];\n"
                                           "st.global.u32 [%w1], %r1;\nred.global.add.u32 [%p2], 1;"));
  uint64_t a = upload(machine, std::vector<uint32_t>(1024), "a"), b = upload(machine, std::vector<uint32_t>(1024), "b"),
           c = upload(machine, std::vector<uint32_t>(8), "c");
  Options &options = machine.options;
  options.races = false; // the threads read what others write
  ASSERT_TRUE(machine.launch(*program, "k", {1}, {64}, Arguments().add(a).add(b).add(c))) << machine.error();
  const Report &report = machine.report();
  auto expect = [](const Traffic &t, uint64_t requests, uint64_t bytes, uint64_t sectors, uint64_t distinct,
                   const std::string &what) {
    EXPECT_EQ(t.requests, requests) << what;
    EXPECT_EQ(t.bytes, bytes) << what;
    EXPECT_EQ(t.sectors, sectors) << what;
    EXPECT_EQ(t.distinct, distinct) << what;
  };
  auto at = [&](const std::string &text) -> const InstructionCount & {
    for (const InstructionCount &count : report.instructions)
      if (count.text == text)
        return count;
    ADD_FAILURE() << text;
    return report.instructions[0];
  };
  expect(at("ld.global.u32 %r1, [%w1];").traffic, 2, 256, 8, 8, "dense");
  expect(at("ld.global.u32 %r2, [%w2];").traffic, 2, 256, 64, 64, "one word of each sector");
  expect(at("ld.global.v4.u32 {%r3, %r4, %r5, %r6}, [%w3];").traffic, 2, 1024, 32, 32, "vectors");
  expect(at("ld.global.u32 %r7, [%p1];").traffic, 2, 256, 2, 1, "all the same");
  expect(at("@%q0 ld.global.u8 %h1, [%w2+31];").traffic, 1, 3, 3, 3, "three lanes");
  EXPECT_EQ(at("@%q0 ld.global.u8 %h1, [%w2+31];").warps, 2);
  EXPECT_EQ(at("@%q0 ld.global.u8 %h1, [%w2+31];").lanes, 3);
  ASSERT_TRUE(report.find("a") && report.find("b") && report.find("c"));
  expect(report.find("a")->read, 5, 515, 75, 64, "a"); // the others lie within the sparse one's sectors
  expect(report.find("a")->written, 2, 256, 8, 8, "a");
  expect(report.find("b")->read, 4, 1280, 34, 32, "b");
  expect(report.find("b")->written, 0, 0, 0, 0, "b");
  expect(report.find("c")->read, 2, 256, 2, 1, "c");
  expect(report.find("c")->written, 2, 256, 2, 1, "c");
  EXPECT_EQ(report.read.sectors, 75 + 34 + 2);
  // mov, three ld.param, mad, ... of two warps each.
  EXPECT_EQ(report.warpInstructions, 2u * uint64_t(report.instructions.size()));
  EXPECT_FALSE(report.find("d"));
  // Counts are those of the last launch.
  ASSERT_TRUE(machine.launch(*program, "k", {2}, {32}, Arguments().add(a).add(b).add(c))) << machine.error();
  expect(machine.report().find("b")->read, 4, 1280, 34, 16, "b, from two blocks");
}

TEST(Counts, SeveralAllocationsInOneRequest) {
  Machine machine;
  auto program = loaded(machine, kernel(2, "and.b32 %r1, %tid, 1;\nsetp.eq.u32 %q0, %r1, 0;\nselp.u64 %w1, %p0, %p1, "
                                           "%q0;\nmad.wide.u32 %w1, %tid, 4, %w1;\nld.global.u32 %r2, [%w1];"));
  uint64_t a = upload(machine, std::vector<uint32_t>(32), "a"), b = upload(machine, std::vector<uint32_t>(32), "b");
  ASSERT_TRUE(machine.launch(*program, "k", {1}, {32}, Arguments().add(a).add(b))) << machine.error();
  for (const char *name : {"a", "b"}) {
    EXPECT_EQ(machine.report().find(name)->read.bytes, 64);
    EXPECT_EQ(machine.report().find(name)->read.sectors, 4);
  }
}

TEST(Machine, Allocations) {
  Options options;
  options.memory = 1 << 20;
  Machine machine(options);
  uint64_t a = machine.allocate(1 << 19), b = machine.allocate(1 << 19);
  EXPECT_TRUE(a && b);
  EXPECT_EQ(machine.allocate(1), 0);
  EXPECT_TRUE(machine.release(a));
  EXPECT_FALSE(machine.release(a));
  EXPECT_FALSE(machine.release(b + 1));
  EXPECT_EQ(machine.allocated(), 1 << 19);
  uint32_t value = 5, back = 0;
  EXPECT_TRUE(machine.write(b + (1 << 19) - 4, &value, 4));
  EXPECT_FALSE(machine.write(b + (1 << 19) - 3, &value, 4));
  EXPECT_FALSE(machine.write(a, &value, 4));
  EXPECT_TRUE(machine.fill(b, &value, 4, 8));
  EXPECT_FALSE(machine.fill(b + 2, &value, 4, 8));
  EXPECT_TRUE(machine.copy(b + 100, b + 4, 4));
  EXPECT_FALSE(machine.copy(reinterpret_cast<uint64_t>(&value), b, 4));
  EXPECT_TRUE(machine.read(&back, b + 100, 4));
  EXPECT_EQ(back, 5);
}

} // namespace
