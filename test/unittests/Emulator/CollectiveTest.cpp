// What the lanes of a warp do together: exchanges, votes, reductions, matrix products.

#include "Support.h"

#include <functional>

using namespace aligned::emulator;

namespace {

using Lanes = std::vector<uint32_t>;

Lanes odd(uint32_t seed) {
  std::mt19937 random(seed);
  Lanes values(32);
  for (uint32_t &value : values)
    value = random();
  return values;
}

/// What `body`, which reads %r10 to %r12 and writes %r20, does for a warp with these values.
Lanes run(const std::string &body, const Lanes &a, const Lanes &b = Lanes(32), const Lanes &c = Lanes(32),
          std::string *error = nullptr, uint32_t threads = 32) {
  Machine machine;
  std::string around =
      "mad.wide.u32 %w0, %tid, 4, %p0;\nmad.wide.u32 %w1, %tid, 4, %p1;\nmad.wide.u32 %w2, %tid, 4, %p2;\nmad.wide.u32 %w3, "
      "%tid, 4, %p3;\n"
      "ld.global.u32 %r10, [%w1];\nld.global.u32 %r11, [%w2];\nld.global.u32 %r12, [%w3];\nmov.u32 %r20, 12345;\n";
  auto program = loaded(machine, kernel(4, around + body + "\nst.global.u32 [%w0], %r20;"));
  uint64_t out = machine.allocate(128);
  bool success =
      program &&
      machine.launch(*program, "k", {1}, {threads},
                     Arguments().add(out).add(upload(machine, a, "a")).add(upload(machine, b, "b")).add(upload(machine, c, "c")));
  if (error)
    *error = machine.error();
  else
    EXPECT_TRUE(success) << machine.error();
  return download<uint32_t>(machine, out, 32);
}

TEST(Collective, Shuffles) {
  Lanes a = odd(1);
  auto check = [&](const std::string &mode, uint32_t width, auto source) {
    // The width is in c: 32 - width above, and for `up` no limit but the segment's first lane.
    std::string c = std::to_string((32 - width) << 8 | (mode == "up" ? 0 : 31));
    for (uint32_t by : {0u, 1u, 3u, 4u, 7u, 15u, 16u, 31u}) {
      Lanes got = run("shfl.sync." + mode + ".b32 %r20|%q0, %r10, " + std::to_string(by) + ", " + c +
                          ", -1;\n@%q0 xor.b32 %r20, %r20, 0x55;",
                      a);
      for (int lane = 0; lane < 32; ++lane) {
        int first = lane / int(width) * int(width), from = source(lane, int(by), first);
        bool inside = from >= first && from < first + int(width);
        EXPECT_EQ(got[size_t(lane)], inside ? a[size_t(from)] ^ 0x55 : a[size_t(lane)])
            << mode << " by " << by << " within " << width << ", lane " << lane;
      }
    }
  };
  for (uint32_t width : {32u, 16u, 8u}) {
    check("up", width, [](int lane, int by, int) { return lane - by; });
    check("down", width, [](int lane, int by, int) { return lane + by; });
    check("idx", width, [=](int, int by, int first) { return first + by % int(width); });
  }
  check("bfly", 32, [](int lane, int by, int) { return lane ^ by; });
  // Another source for every lane.
  Lanes b = odd(2), got = run("shfl.sync.idx.b32 %r20, %r10, %r11, 31, -1;", a, b);
  for (size_t i = 0; i < 32; ++i)
    EXPECT_EQ(got[i], a[b[i] % 32]);
}

TEST(Collective, ShufflesOfSomeLanes) {
  // Halves of a warp, each on its own path.
  Lanes a = odd(3),
        got = run("setp.lt.u32 %q0, %tid, 16;\n@%q0 bra LOW;\nshfl.sync.bfly.b32 %r20, %r10, 1, 31, 0xffff0000;\nbra END;\n"
                  "LOW: shfl.sync.bfly.b32 %r20, %r10, 2, 31, 0x0000ffff;\nEND:",
                  a);
  for (size_t i = 0; i < 32; ++i)
    EXPECT_EQ(got[i], a[i ^ (i < 16 ? 2 : 1)]);
  // The same instruction with two masks.
  got = run("mov.u32 %r1, 0xff; setp.gt.u32 %q0, %tid, 7; @%q0 mov.u32 %r1, 0xffffff00;\nshfl.sync.down.b32 %r20, %r10, 1, "
            "0x181f, %r1;",
            a);
  for (size_t i = 0; i < 32; ++i)
    EXPECT_EQ(got[i], i % 8 == 7 ? a[i] : a[i + 1]);
  // A lane that takes no part has nothing to give.
  std::string error;
  run("setp.lt.u32 %q0, %tid, 16;\n@%q0 shfl.sync.bfly.b32 %r20, %r10, 16, 31, 0xffff;", a, Lanes(32), Lanes(32), &error);
  EXPECT_NE(error.find("reads a register of lane 16, which takes no part"), std::string::npos) << error;
  // Nor may it be absent from its own mask.
  run("shfl.sync.bfly.b32 %r20, %r10, 1, 31, 0xffff;", a, Lanes(32), Lanes(32), &error);
  EXPECT_NE(error.find("is not in its mask"), std::string::npos) << error;
}

TEST(Collective, Votes) {
  for (uint32_t pattern : {0u, ~0u, 1u, 0x80000000u, 0x12345678u}) {
    Lanes a(32);
    for (size_t i = 0; i < 32; ++i)
      a[i] = pattern >> i & 1;
    std::string test = "setp.ne.u32 %q1, %r10, 0;\n", give = "\nselp.u32 %r20, 1, 0, %q0;";
    EXPECT_EQ(run(test + "vote.sync.ballot.b32 %r20, %q1, -1;", a), Lanes(32, pattern));
    EXPECT_EQ(run(test + "vote.sync.ballot.b32 %r20, !%q1, -1;", a), Lanes(32, ~pattern));
    EXPECT_EQ(run(test + "vote.sync.all.pred %q0, %q1, -1;" + give, a), Lanes(32, pattern == ~0u));
    EXPECT_EQ(run(test + "vote.sync.any.pred %q0, %q1, -1;" + give, a), Lanes(32, pattern != 0));
    EXPECT_EQ(run(test + "vote.sync.uni.pred %q0, %q1, -1;" + give, a), Lanes(32, pattern == 0 || pattern == ~0u));
  }
}

TEST(Collective, Matches) {
  Lanes a(32);
  for (size_t i = 0; i < 32; ++i)
    a[i] = uint32_t(i * i % 7);
  Lanes got = run("match.any.sync.b32 %r20, %r10, -1;", a);
  for (size_t i = 0; i < 32; ++i) {
    uint32_t want = 0;
    for (size_t j = 0; j < 32; ++j)
      want |= uint32_t(a[j] == a[i]) << j;
    EXPECT_EQ(got[i], want);
  }
  EXPECT_EQ(run("match.all.sync.b32 %r20|%q0, %r10, -1;\n@%q0 add.u32 %r20, %r20, 7;", a), Lanes(32, 0));
  EXPECT_EQ(run("match.all.sync.b32 %r20|%q0, %r10, -1;\n@%q0 add.u32 %r20, %r20, 7;", Lanes(32, 5)), Lanes(32, 6));
}

TEST(Collective, Reductions) {
  Lanes a = odd(4);
  auto fold = [&](auto f) {
    uint32_t x = a[0];
    for (size_t i = 1; i < 32; ++i)
      x = f(x, a[i]);
    return Lanes(32, x);
  };
  EXPECT_EQ(run("redux.sync.add.s32 %r20, %r10, -1;", a), fold([](uint32_t x, uint32_t y) { return x + y; }));
  EXPECT_EQ(run("redux.sync.min.u32 %r20, %r10, -1;", a), fold([](uint32_t x, uint32_t y) { return std::min(x, y); }));
  EXPECT_EQ(run("redux.sync.max.s32 %r20, %r10, -1;", a),
            fold([](uint32_t x, uint32_t y) { return uint32_t(std::max(int32_t(x), int32_t(y))); }));
  EXPECT_EQ(run("redux.sync.and.b32 %r20, %r10, -1;", a), fold([](uint32_t x, uint32_t y) { return x & y; }));
  EXPECT_EQ(run("redux.sync.or.b32 %r20, %r10, -1;", a), fold([](uint32_t x, uint32_t y) { return x | y; }));
  EXPECT_EQ(run("redux.sync.xor.b32 %r20, %r10, -1;", a), fold([](uint32_t x, uint32_t y) { return x ^ y; }));
}

TEST(Collective, ActiveLanes) {
  Lanes got =
      run("setp.lt.u32 %q0, %tid, 5;\n@%q0 bra LOW;\nactivemask.b32 %r20;\nbra END;\nLOW: activemask.b32 %r20;\nEND:", Lanes(32));
  for (size_t i = 0; i < 32; ++i)
    EXPECT_EQ(got[i], i < 5 ? 31u : ~31u);
  got = run("elect.sync %r20|%q0, -1;\n@%q0 mov.u32 %r20, 99;", Lanes(32));
  for (size_t i = 0; i < 32; ++i)
    EXPECT_EQ(got[i], i ? 0 : 99);
}

TEST(Collective, NeedsAllLanes) {
  std::string error;
  run("movmatrix.sync.aligned.m8n8.trans.b16 %r20, %r10;", Lanes(32), Lanes(32), Lanes(32), &error, 16);
  EXPECT_NE(error.find("needs all 32 threads of a warp, of which 16 are there"), std::string::npos) << error;
  run("setp.lt.u32 %q0, %tid, 16;\n@%q0 movmatrix.sync.aligned.m8n8.trans.b16 %r20, %r10;", Lanes(32), Lanes(32), Lanes(32),
      &error);
  EXPECT_NE(error.find("deadlock: 16 of 32 threads wait at line"), std::string::npos) << error;
}

TEST(Collective, Transposition) {
  Lanes a = odd(6), got = run("movmatrix.sync.aligned.m8n8.trans.b16 %r20, %r10;", a);
  auto at = [](const Lanes &m, size_t row, size_t column) { return uint16_t(m[row * 4 + column / 2] >> (16 * (column % 2))); };
  for (size_t row = 0; row < 8; ++row)
    for (size_t column = 0; column < 8; ++column)
      EXPECT_EQ(at(got, row, column), at(a, column, row));
}

//===----------------------------------------------------------------------===//
// Matrix products
//===----------------------------------------------------------------------===//

uint16_t halfOf(int x) { // of small integers
  if (!x)
    return 0;
  int magnitude = std::abs(x), exponent = std::ilogb(double(magnitude));
  return uint16_t((x < 0 ? 0x8000 : 0) | (exponent + 15) << 10 | ((magnitude << 10 >> exponent) & 0x3ff));
}
uint32_t singleOf(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

struct Product {
  const char *instruction;
  int depth, elementBits;                        // of A and B
  std::function<uint32_t(int)> encodeA, encodeB; // of integers within the range
  int lowA, highA, lowB, highB;
  bool integers; // results
  bool halves = false;
};

/// Where the manual puts elements, with i counting a lane's elements in the order of its registers.
void placeA(const Product &p, int lane, int i, int &row, int &column) {
  int group = lane / 4, t = lane % 4, perRegister = 32 / p.elementBits, reg = i / perRegister, element = i % perRegister;
  row = reg == 0 || reg == 2 ? group : group + 8;
  column = t * perRegister + element + (reg >= 2 ? 4 * perRegister : 0);
}
void placeB(const Product &p, int lane, int i, int &row, int &column) {
  int group = lane / 4, t = lane % 4, perRegister = 32 / p.elementBits, reg = i / perRegister, element = i % perRegister;
  row = t * perRegister + element + (reg ? 4 * perRegister : 0);
  column = group;
}

void check(const Product &p, bool saturates = false) {
  std::mt19937 random(7);
  auto draw = [&](int low, int high) { return low + int(random() % uint32_t(high - low + 1)); };
  std::vector<std::vector<int>> a(16, std::vector<int>(size_t(p.depth))), b(size_t(p.depth), std::vector<int>(8)),
      c(16, std::vector<int>(8));
  for (auto &row : a)
    for (int &x : row)
      x = draw(p.lowA, p.highA);
  for (auto &row : b)
    for (int &x : row)
      x = draw(p.lowB, p.highB);
  for (auto &row : c)
    for (int &x : row)
      x = saturates ? 2147483647 - draw(0, 100) : draw(-1000, 1000);
  int perRegister = 32 / p.elementBits, registersB = p.depth / (4 * perRegister), registersA = 2 * registersB,
      registersC = p.halves ? 2 : 4;
  uint32_t fragment[32][16] = {};
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0, row, column; i < registersA * perRegister; ++i) {
      placeA(p, lane, i, row, column);
      fragment[lane][i / perRegister] |= p.encodeA(a[size_t(row)][size_t(column)]) << (p.elementBits * (i % perRegister));
    }
    for (int i = 0, row, column; i < registersB * perRegister; ++i) {
      placeB(p, lane, i, row, column);
      fragment[lane][4 + i / perRegister] |= p.encodeB(b[size_t(row)][size_t(column)]) << (p.elementBits * (i % perRegister));
    }
    for (int i = 0; i < 4; ++i) {
      int x = c[size_t(lane / 4 + (i < 2 ? 0 : 8))][size_t(lane % 4 * 2 + i % 2)];
      if (p.halves)
        fragment[lane][6 + i / 2] |= uint32_t(halfOf(x)) << (16 * (i % 2));
      else
        fragment[lane][6 + i] = p.integers ? uint32_t(x) : singleOf(float(x));
    }
  }
  auto list = [](int first, int count) {
    std::string text = "{";
    for (int i = 0; i < count; ++i)
      text += (i ? ", %r" : "%r") + std::to_string(first + i);
    return text + "}";
  };
  std::string body = "mad.wide.u32 %w0, %tid, 64, %p0;\nmad.wide.u32 %w1, %tid, 16, %p1;\n";
  for (int i = 0; i < 10; ++i)
    body += "ld.global.u32 %r" + std::to_string(10 + i) + ", [%w0+" + std::to_string(4 * i) + "];\n";
  body += std::string(p.instruction) + " " + list(20, registersC) + ", " + list(10, registersA) + ", " + list(14, registersB) +
          ", " + list(16, registersC) + ";\n";
  for (int i = 0; i < registersC; ++i)
    body += "st.global.u32 [%w1+" + std::to_string(4 * i) + "], %r" + std::to_string(20 + i) + ";\n";
  Machine machine;
  auto program = loaded(machine, kernel(2, body));
  ASSERT_TRUE(program);
  uint64_t in = machine.allocate(sizeof fragment), out = machine.allocate(512);
  machine.write(in, fragment, sizeof fragment);
  ASSERT_TRUE(machine.launch(*program, "k", {1}, {32}, Arguments().add(in).add(out))) << machine.error();
  auto got = download<uint32_t>(machine, out, 128);
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i) {
      auto row = size_t(lane / 4 + (i < 2 ? 0 : 8)), column = size_t(lane % 4 * 2 + i % 2);
      int64_t sum = c[row][column];
      for (size_t k = 0; k < size_t(p.depth); ++k)
        sum += int64_t(a[row][k]) * b[k][column];
      if (saturates)
        sum = std::min<int64_t>(sum, INT32_MAX);
      uint32_t have = p.halves ? got[size_t(lane * 4 + i / 2)] >> (16 * (i % 2)) & 0xffff : got[size_t(lane * 4 + i)];
      uint32_t want = p.halves ? halfOf(int(sum)) : p.integers ? uint32_t(sum) : singleOf(float(sum));
      ASSERT_EQ(have, want) << p.instruction << " row " << row << ", column " << column;
    }
}

TEST(Collective, Products) {
  auto half = [](int x) { return uint32_t(halfOf(x)); };
  auto brain = [](int x) { return singleOf(float(x)) >> 16; };
  auto single = [](int x) { return singleOf(float(x)); };
  auto byte = [](int x) { return uint32_t(uint8_t(x)); };
  auto nibble = [](int x) { return uint32_t(x & 15); };
  check({"mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", 16, 16, half, half, -20, 20, -20, 20, false});
  check({"mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32", 8, 16, half, half, -20, 20, -20, 20, false});
  check({"mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16", 16, 16, half, half, -5, 5, -5, 5, false, true});
  check({"mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", 16, 16, brain, brain, -20, 20, -20, 20, false});
  check({"mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32", 8, 16, brain, brain, -20, 20, -20, 20, false});
  check({"mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32", 8, 32, single, single, -20, 20, -20, 20, false});
  check({"mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32", 4, 32, single, single, -20, 20, -20, 20, false});
  check({"mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32", 32, 8, byte, byte, 0, 255, -128, 127, true});
  check({"mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32", 32, 8, byte, byte, -128, 127, 0, 255, true});
  check({"mma.sync.aligned.m16n8k32.row.col.s32.u8.u8.s32", 32, 8, byte, byte, 0, 255, 0, 255, true});
  check({"mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32", 32, 8, byte, byte, -128, 127, -128, 127, true});
  check({"mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32", 16, 8, byte, byte, -128, 127, -128, 127, true});
  check({"mma.sync.aligned.m16n8k64.row.col.s32.u4.s4.s32", 64, 4, nibble, nibble, 0, 15, -8, 7, true});
  check({"mma.sync.aligned.m16n8k32.row.col.s32.s4.u4.s32", 32, 4, nibble, nibble, -8, 7, 0, 15, true});
  check({"mma.sync.aligned.m16n8k32.row.col.satfinite.s32.u8.u8.s32", 32, 8, byte, byte, 0, 255, 0, 255, true}, true);
}

TEST(Collective, MatricesOfSharedMemory) {
  // A of 16 by 16 and B of 16 by 8, row by row in shared memory, through ldmatrix into a product.
  std::string text = kernel(3,
                            "mad.wide.u32 %w1, %tid, 16, %p1;\nld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%w1];\nmov.u32 %r0, "
                            "a;\nmad.lo.u32 %r5, %tid, 16, %r0;\n"
                            "st.shared.v4.u32 [%r5], {%r1, %r2, %r3, %r4};\n"
                            "mad.wide.u32 %w1, %tid, 8, %p2;\nld.global.v2.u32 {%r1, %r2}, [%w1];\nmov.u32 %r0, b;\nmad.lo.u32 "
                            "%r5, %tid, 8, %r0;\nst.shared.v2.u32 [%r5], {%r1, %r2};\n"
                            "bar.sync 0;\n"
                            // Lanes 0 to 7 and 8 to 15 point to the upper and lower left, the others to the right.
                            "and.b32 %r1, %tid, 15;\nshl.b32 %r1, %r1, 5;\nshr.u32 %r2, %tid, 4;\nmad.lo.u32 %r1, %r2, 16, "
                            "%r1;\nmov.u32 %r3, a;\nadd.u32 %r1, %r1, %r3;\n"
                            "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r10, %r11, %r12, %r13}, [%r1];\n"
                            "and.b32 %r1, %tid, 15;\nshl.b32 %r1, %r1, 4;\nmov.u32 %r3, b;\nadd.u32 %r1, %r1, %r3;\n"
                            "ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%r14, %r15}, [%r1];\n"
                            "mov.u32 %r16, 0;\nmma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%r20, %r21, %r22, %r23}, "
                            "{%r10, %r11, %r12, %r13}, {%r14, %r15}, {%r16, %r16, %r16, %r16};\n"
                            "mad.wide.u32 %w1, %tid, 16, %p0;\nst.global.v4.b32 [%w1], {%r20, %r21, %r22, %r23};",
                            ".shared .align 16 .b8 a[512];\n.shared .align 16 .b8 b[256];\n");
  Machine machine;
  auto program = loaded(machine, text);
  std::vector<uint16_t> a(256), b(128);
  std::vector<int> x(256), y(128);
  for (size_t i = 0; i < 256; ++i)
    a[i] = halfOf(x[i] = int(i * 7 % 23) - 11);
  for (size_t i = 0; i < 128; ++i)
    b[i] = halfOf(y[i] = int(i * 5 % 19) - 9);
  uint64_t out = machine.allocate(512, "out");
  ASSERT_TRUE(
      machine.launch(*program, "k", {1}, {32}, Arguments().add(out).add(upload(machine, a, "a")).add(upload(machine, b, "b"))))
      << machine.error();
  auto got = download<float>(machine, out, 128);
  for (size_t lane = 0; lane < 32; ++lane)
    for (size_t i = 0; i < 4; ++i) {
      size_t row = lane / 4 + (i < 2 ? 0 : 8), column = lane % 4 * 2 + i % 2;
      int sum = 0;
      for (size_t k = 0; k < 16; ++k)
        sum += x[row * 16 + k] * y[k * 8 + column];
      EXPECT_EQ(got[lane * 4 + i], float(sum));
    }
}

} // namespace
