// Threads that depend on one another: barriers, races, deadlocks, signals between blocks, and programs that lack one of their
// synchronising instructions.

#include "Support.h"

#include <algorithm>
#include <set>

using namespace aligned::emulator;

namespace {

struct Outcome {
  bool success;
  Fault fault;
  std::string error;
  std::vector<uint32_t> out;
};

/// Runs `body` with %p0, 1024 numbers of output that start as zero, and %p1, 4096 numbers i of input.
Outcome run(const std::string &body, Dim grid = {1}, Dim block = {64}, Options options = Options(), int erased = -1,
            const std::string &declarations = ".shared .align 4 .b8 s[4096];\n") {
  Machine machine(options);
  auto program = loaded(machine, kernel(2, body, declarations));
  if (!program)
    return {};
  program->erase(erased);
  std::vector<uint32_t> in(4096);
  for (uint32_t i = 0; i < 4096; ++i)
    in[i] = i;
  uint64_t out = upload(machine, std::vector<uint32_t>(1024), "out");
  bool success = machine.launch(*program, "k", grid, block, Arguments().add(out).add(upload(machine, in, "in")));
  return {success, machine.fault(), machine.error(), download<uint32_t>(machine, out, 1024)};
}

void expectFault(const Outcome &outcome, Fault fault, std::initializer_list<const char *> parts) {
  EXPECT_FALSE(outcome.success);
  EXPECT_EQ(outcome.fault, fault) << outcome.error;
  for (const char *part : parts)
    EXPECT_NE(outcome.error.find(part), std::string::npos) << "expected '" << part << "' in: " << outcome.error;
}

Options seeded(uint64_t seed) {
  Options options;
  options.seed = seed;
  options.slice = uint32_t(1 + seed * 7 % 100);
  options.resident = uint32_t(1 + seed % 4);
  options.shuffleBlocks = seed % 2;
  return options;
}

const char *const place = "mov.u32 %r0, s;\nmad.lo.u32 %r1, %tid, 4, %r0;\nmad.wide.u32 %w0, %tid, 4, %p0;\n";

/// The sum of 256 numbers per block, by a tree: its barriers, then within the last warp.
const char *const reduction =
    "mov.u32 %r0, s;\nmad.lo.u32 %r1, %tid, 4, %r0;\nmov.u32 %r9, %ctaid.x;\nmad.lo.u32 %r2, %r9, 256, %tid;\nmad.wide.u32 %w1, "
    "%r2, 4, %p1;\n"
    "ld.global.u32 %r3, [%w1];\nst.shared.u32 [%r1], %r3;\nbar.sync 0;\nmov.u32 %r4, 128;\n"
    "LOOP: setp.ge.u32 %q0, %tid, %r4;\n@%q0 bra SKIP;\nmad.lo.u32 %r5, %r4, 4, %r1;\nld.shared.u32 %r6, [%r5];\nld.shared.u32 "
    "%r7, [%r1];\nadd.u32 %r7, %r7, %r6;\n"
    "st.shared.u32 [%r1], %r7;\nSKIP: bar.sync 0;\nshr.u32 %r4, %r4, 1;\nsetp.gt.u32 %q1, %r4, 16;\n@%q1 bra LOOP;\n"
    "setp.gt.u32 %q2, %tid, 31;\n@%q2 bra END;\n"
    "STEP: mad.lo.u32 %r5, %r4, 4, %r1;\nsetp.lt.u32 %q3, %tid, %r4;\n@%q3 ld.shared.u32 %r6, [%r5];\n@%q3 ld.shared.u32 %r7, "
    "[%r1];\n@%q3 add.u32 %r7, %r7, %r6;\n"
    "@%q3 st.shared.u32 [%r1], %r7;\nbar.warp.sync -1;\nshr.u32 %r4, %r4, 1;\nsetp.gt.u32 %q4, %r4, 0;\n@%q4 bra STEP;\n"
    "setp.eq.u32 %q5, %tid, 0;\nmad.wide.u32 %w2, %r9, 4, %p0;\n@%q5 st.global.u32 [%w2], %r7;\nEND:";

TEST(Schedule, Reduction) {
  for (uint64_t seed = 0; seed < 12; ++seed)
    for (bool roundRobin : {false, true}) {
      Options options = seeded(seed);
      options.roundRobin = roundRobin;
      Outcome outcome = run(reduction, {8}, {256}, options);
      ASSERT_TRUE(outcome.success) << outcome.error;
      for (uint32_t block = 0; block < 8; ++block)
        EXPECT_EQ(outcome.out[block], 256 * 256 * block + 255 * 128);
    }
}

TEST(Schedule, MutatedReduction) {
  Machine machine;
  auto program = loaded(machine, kernel(2, reduction, ".shared .align 4 .b8 s[4096];\n"));
  auto list = program->synchronising();
  ASSERT_EQ(list.size(), 3u);
  EXPECT_EQ(list[0].text, "bar.sync 0;");
  EXPECT_EQ(list[2].text, "bar.warp.sync -1;");
  EXPECT_EQ(list[0].kernel, "k");
  EXPECT_LT(list[0].line, list[1].line);
  for (int n = 0; n < 3; ++n)
    for (uint64_t seed = 0; seed < 5; ++seed)
      expectFault(run(reduction, {2}, {256}, seeded(seed), n), Fault::Race, {"race within a ", "shared memory at 0x"});
  // Wrong sums, too, where nobody looks for races: not under every schedule, but under some.
  std::set<uint32_t> sums;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    Options options = seeded(seed);
    options.races = false;
    options.slice = 3;
    sums.insert(run(reduction, {1}, {256}, options, 1).out[0]);
  }
  EXPECT_GT(sums.size(), 1u);
}

TEST(Schedule, SeedsDiffer) {
  // Who comes first to an atomic depends on the seed, and on nothing else.
  std::string body = "atom.global.add.u32 %r1, [%p0], 1;\nmad.wide.u32 %w0, %tid, 4, %p0;\nst.global.u32 [%w0+4], %r1;";
  std::set<std::vector<uint32_t>> orders;
  for (uint64_t seed = 0; seed < 10; ++seed) {
    Outcome first = run(body, {1}, {128}, seeded(seed)), second = run(body, {1}, {128}, seeded(seed));
    ASSERT_TRUE(first.success) << first.error;
    EXPECT_EQ(first.out, second.out);
    orders.insert(first.out);
  }
  EXPECT_GT(orders.size(), 5u);
}

TEST(Races, SharedMemory) {
  std::string write = std::string(place) + "st.shared.u32 [%r1], %tid;\n",
              read = "ld.shared.u32 %r2, [%r3];\nst.global.u32 [%w0], %r2;\n";
  std::string neighbour = "xor.b32 %r3, %tid, 1;\nmad.lo.u32 %r3, %r3, 4, %r0;\n",
              other = "xor.b32 %r3, %tid, 32;\nmad.lo.u32 %r3, %r3, 4, %r0;\n";
  for (uint64_t seed = 0; seed < 5; ++seed) {
    // Written by another warp.
    expectFault(run(write + other + read, {1}, {64}, seeded(seed)), Fault::Race,
                {"race within a block", "shared memory at 0x", "thread ("});
    expectFault(run(write + other + "bar.warp.sync -1;\n" + read, {1}, {64}, seeded(seed)), Fault::Race, {"race within a block"});
    Outcome good = run(write + other + "bar.sync 0;\n" + read, {1}, {64}, seeded(seed));
    EXPECT_TRUE(good.success) << good.error;
    EXPECT_EQ(good.out[3], 35u);
    // Written by another lane.
    expectFault(run(write + neighbour + read, {1}, {64}, seeded(seed)), Fault::Race,
                {"race within a warp: this read", "is not ordered with a write", "'st.shared.u32 [%r1], %tid;'"});
    for (const char *order : {"bar.warp.sync -1;\n", "bar.sync 0;\n", "shfl.sync.bfly.b32 %r9, %r1, 1, 31, -1;\n"}) {
      good = run(write + neighbour + order + read, {1}, {64}, seeded(seed));
      EXPECT_TRUE(good.success) << good.error;
      EXPECT_EQ(good.out[3], 2u);
    }
    // Exchanges order only if they are said to.
    Options strict = seeded(seed);
    strict.collectivesOrder = false;
    expectFault(run(write + neighbour + "shfl.sync.bfly.b32 %r9, %r1, 1, 31, -1;\n" + read, {1}, {64}, strict), Fault::Race,
                {"race within a warp"});
    // Overwritten before it is read.
    std::string over = write + "bar.sync 0;\n" + other + "ld.shared.u32 %r2, [%r3];\n", again = "st.shared.u32 [%r1], 7;\n";
    expectFault(run(over + again, {1}, {64}, seeded(seed)), Fault::Race,
                {"race within a block", "st.shared.u32 [%r1], 7;", "ld.shared.u32 %r2, [%r3];"});
    EXPECT_TRUE(run(over + "bar.sync 0;\n" + again, {1}, {64}, seeded(seed)).success);
    // Everybody writes to one place.
    expectFault(run("st.shared.u32 [s], 1;", {1}, {32}, seeded(seed)), Fault::Race, {"this write", "with a write"});
    // Several readers, one writer.
    std::string readers = "setp.eq.u32 %q0, %tid, 5;\n@%q0 st.shared.u32 [s], 1;\nbar.sync 0;\nld.shared.u32 %r2, [s];\n";
    expectFault(run(readers + "@%q0 st.shared.u32 [s], 2;", {1}, {96}, seeded(seed)), Fault::Race, {"race within a ", "[s], 2;"});
    expectFault(run(readers + "bar.warp.sync -1;\n@%q0 st.shared.u32 [s], 2;", {1}, {96}, seeded(seed)), Fault::Race,
                {"race within a block", "[s], 2;"});
    EXPECT_TRUE(run(readers + "bar.sync 0;\n@%q0 st.shared.u32 [s], 2;", {1}, {96}, seeded(seed)).success);
  }
}

TEST(Races, Bytes) {
  // Neighbours in one word are not the same place.
  std::string body = "mov.u32 %r0, s;\nadd.u32 %r1, %r0, %tid;\ncvt.u16.u32 %h1, %tid;\nst.shared.u8 [%r1], %h1;\n";
  Outcome good =
      run(body + "bar.sync 0;\nld.shared.u32 %r2, [s+32];\nmad.wide.u32 %w0, %tid, 4, %p0;\nst.global.u32 [%w0], %r2;");
  EXPECT_TRUE(good.success) << good.error;
  EXPECT_EQ(good.out[1], 0x23222120u);
  expectFault(run(body + "ld.shared.u32 %r2, [s+32];"), Fault::Race, {"ld.shared.u32", "st.shared.u8"});
  expectFault(run(body + "st.shared.u8 [%r1+1], %h1;"), Fault::Race, {"this write", "with a write"});
  // And after a word was written as a whole.
  EXPECT_TRUE(run(body + "bar.sync 0;\nsetp.lt.u32 %q0, %tid, 16;\nmad.lo.u32 %r3, %tid, 4, %r0;\n@%q0 st.shared.u32 [%r3], "
                         "0;\nbar.sync 0;\nld.shared.u8 %h2, [%r1];\nbar.sync 0;\nst.shared.u8 [%r1], %h1;")
                  .success);
}

TEST(Races, SomeLanes) {
  // Lanes 0 to 15 synchronise among themselves.
  std::string body =
      std::string(place) +
      "st.shared.u32 [%r1], %tid;\nsetp.ge.u32 %q0, %tid, 16;\n@%q0 bra END;\nbar.warp.sync 0xffff;\nxor.b32 %r3, %tid, ";
  std::string read = ";\nmad.lo.u32 %r3, %r3, 4, %r0;\nld.shared.u32 %r2, [%r3];\nst.global.u32 [%w0], %r2;\nEND:";
  Outcome good = run(body + "8" + read, {1}, {32});
  EXPECT_TRUE(good.success) << good.error;
  EXPECT_EQ(good.out[3], 11u);
  expectFault(run(body + "16" + read, {1}, {32}), Fault::Race, {"race within a warp"});
}

TEST(Races, Atomics) {
  // Atomics may meet; a plain access may not meet them.
  EXPECT_TRUE(run("atom.shared.add.u32 %r1, [s], 1;").success);
  expectFault(run("atom.shared.add.u32 %r1, [s], 1;\nld.shared.u32 %r2, [s];"), Fault::Race,
              {"atom.shared.add.u32", "ld.shared.u32"});
  EXPECT_TRUE(run("setp.eq.u32 %q0, %tid, 0;\n@%q0 st.shared.u32 [s], 0;\nbar.sync 0;\natom.shared.add.u32 %r1, [s], "
                  "1;\nbar.sync 0;\nld.shared.u32 %r2, [s];")
                  .success);
  expectFault(run("setp.eq.u32 %q0, %tid, 0;\n@%q0 st.global.u32 [%p0], 0;\nred.global.add.u32 [%p0], 1;"), Fault::Race,
              {"global memory at 0x", "('out' + 0)"});
}

TEST(Races, GlobalMemory) {
  // Between blocks there is no barrier.
  std::string body = "mov.u32 %r1, %ctaid.x;\nsetp.eq.u32 %q0, %tid, 0;\nmad.wide.u32 %w0, %r1, 4, %p0;\n@%q0 st.global.u32 "
                     "[%w0], 5;\nbar.sync 0;\n";
  EXPECT_TRUE(run(body + "ld.global.u32 %r2, [%w0];", {4}).success);
  for (uint64_t seed = 0; seed < 5; ++seed)
    expectFault(run(body + "ld.global.u32 %r2, [%p0];", {4}, {64}, seeded(seed)), Fault::Race,
                {"race between blocks", "of block ("});
  expectFault(run("setp.eq.u32 %q0, %tid, 0;\n@%q0 st.global.u32 [%p0], 5;", {2}), Fault::Race,
              {"race between blocks: this write", "with a write"});
  // Within a block as in shared memory.
  std::string within =
      "mad.wide.u32 %w0, %tid, 4, %p0;\nst.global.u32 [%w0], %tid;\nxor.b32 %r1, %tid, 33;\nmad.wide.u32 %w1, %r1, 4, %p0;\n";
  expectFault(run(within + "ld.global.u32 %r2, [%w1];"), Fault::Race, {"race within a block"});
  EXPECT_TRUE(run(within + "bar.sync 0;\nld.global.u32 %r2, [%w1];").success);
  // What all blocks only read is nobody's business, and launches are ordered.
  EXPECT_TRUE(run("ld.global.u32 %r1, [%p1];", {8}).success);
}

/// Every block writes its number, and the one that comes last adds them up.
std::string lastBlock(const std::string &release, const std::string &acquire) {
  return "mov.u32 %r1, %ctaid.x;\nmov.u32 %r2, %nctaid.x;\nsetp.ne.u32 %q0, %tid, 0;\nadd.u32 %r3, %r1, 1;\nmad.wide.u32 %w0, "
         "%r1, 4, %p0;\n"
         "@%q0 bra WAIT;\nst.global.u32 [%w0+16], %r3;\n" +
         release + "atom.global.add.u32 %r4, [%p0], 1;\n" + acquire +
         "st.shared.u32 [s], %r4;\nWAIT: bar.sync 0;\nld.shared.u32 %r4, [s];\nadd.u32 %r5, %r2, -1;\nsetp.ne.u32 %q1, %r4, "
         "%r5;\n@%q1 bra END;\n"
         // The last block: a thread of another warp adds up, and the counter is set back.
         "setp.ne.u32 %q2, %tid, 40;\n@%q2 bra END;\nst.global.u32 [%p0], 0;\nmov.u32 %r6, 0;\nmov.u32 %r7, 0;\nmov.u64 %w1, "
         "%p0;\n"
         "LOOP: ld.global.u32 %r8, [%w1+16];\nadd.u32 %r6, %r6, %r8;\nadd.u64 %w1, %w1, 4;\nadd.u32 %r7, %r7, 1;\nsetp.lt.u32 "
         "%q3, %r7, %r2;\n@%q3 bra LOOP;\nst.global.u32 [%p0+4], %r6;\nEND:";
}

TEST(Races, LastBlock) {
  for (uint64_t seed = 0; seed < 10; ++seed) {
    for (const char *release : {"membar.gl;\n", "fence.acq_rel.gpu;\n", "fence.sc.sys;\n"}) {
      Outcome good = run(lastBlock(release, "membar.gl;\n"), {10}, {64}, seeded(seed));
      EXPECT_TRUE(good.success) << good.error;
      EXPECT_EQ(good.out[1], 55u);
      EXPECT_EQ(good.out[0], 0u);
    }
    expectFault(run(lastBlock("", "membar.gl;\n"), {10}, {64}, seeded(seed)), Fault::Race,
                {"race between blocks: this read", "with a write"});
    expectFault(run(lastBlock("membar.cta;\n", "membar.gl;\n"), {10}, {64}, seeded(seed)), Fault::Race,
                {"race between blocks"}); // not far enough
    // The reader's fence is asked for on demand.
    EXPECT_TRUE(run(lastBlock("membar.gl;\n", ""), {10}, {64}, seeded(seed)).success);
    Options strict = seeded(seed);
    strict.acquireNeedsFence = true;
    EXPECT_TRUE(run(lastBlock("membar.gl;\n", "membar.gl;\n"), {10}, {64}, strict).success);
    expectFault(run(lastBlock("membar.gl;\n", ""), {10}, {64}, strict), Fault::Race, {"race between blocks"});
  }
  Outcome semantics = run(
      [] {
        std::string text = lastBlock("", "");
        size_t at = text.find("atom.global.add");
        return text.replace(at, 11, "atom.acq_rel.gpu.global");
      }(),
      {10}, {64}, seeded(1));
  EXPECT_TRUE(semantics.success) << semantics.error;
}

TEST(Races, FencesAreCumulative) {
  // All threads of a block write; after a barrier one of them fences and counts, for all. Without the barrier only for itself.
  auto body = [](const std::string &order) {
    return "mov.u32 %r1, %ctaid.x;\nmov.u32 %r2, %nctaid.x;\nsetp.ne.u32 %q0, %tid, 0;\nmad.lo.u32 %r3, %r1, 64, "
           "%tid;\nmad.wide.u32 %w0, %r3, 4, %p0;\nst.global.u32 [%w0+16], 1;\n" +
           order +
           "@%q0 bra WAIT;\nmembar.gl;\natom.global.inc.u32 %r4, [%p0], 1000;\nst.shared.u32 [s], %r4;\nWAIT: bar.sync "
           "1;\nld.shared.u32 %r4, [s];\nadd.u32 %r5, %r2, -1;\nsetp.ne.u32 %q1, %r4, %r5;\n@%q1 bra END;\n"
           // Threads of the last block read what their fellows of the next one wrote.
           "add.u32 %r7, %r1, 1;\nrem.u32 %r7, %r7, %r2;\nmad.lo.u32 %r7, %r7, 64, %tid;\nmad.wide.u32 %w1, %r7, 4, "
           "%p0;\nld.global.u32 %r6, [%w1+16];\nadd.u32 %r6, %r6, 4;\nmad.wide.u32 %w2, %tid, 4, %p0;\n"
           "st.global.u32 [%w2+3000], %r6;\nEND:";
  };
  for (uint64_t seed = 0; seed < 10; ++seed) {
    Outcome good = run(body("bar.sync 0;\n"), {5}, {64}, seeded(seed));
    EXPECT_TRUE(good.success) << good.error;
    EXPECT_EQ(good.out[750 + 63], 5u);
    expectFault(run(body("bar.warp.sync -1;\n"), {5}, {64}, seeded(seed)), Fault::Race,
                {"race between blocks"});                                                      // the other warp's
    expectFault(run(body(""), {5}, {32}, seeded(seed)), Fault::Race, {"race between blocks"}); // the other lanes'
    EXPECT_TRUE(run(body("bar.warp.sync -1;\n"), {5}, {32}, seeded(seed)).success);
    // Everybody fences before the barrier: as good.
    EXPECT_TRUE(run(body("membar.gl;\nbar.sync 0;\n"), {5}, {64}, seeded(seed)).success);
  }
}

TEST(Races, MutatedLastBlock) {
  std::string body = lastBlock("membar.gl;\n", "membar.gl;\n");
  Options strict;
  strict.acquireNeedsFence = true;
  EXPECT_TRUE(run(body, {10}, {64}, strict).success);
  for (int n = 0; n < 3; ++n)
    EXPECT_FALSE(run(body, {10}, {64}, strict, n).success) << n;
}

TEST(Races, Flags) {
  // One block waits for another: with several resident blocks that ends, and is ordered.
  std::string body = "mov.u32 %r1, %ctaid.x;\nsetp.eq.u32 %q0, %r1, 0;\n@%q0 bra WAIT;\nst.global.u32 [%p0+4], "
                     "42;\nst.release.gpu.global.u32 [%p0], 1;\nbra END;\n"
                     "WAIT: ld.acquire.gpu.global.u32 %r2, [%p0];\nsetp.eq.u32 %q1, %r2, 0;\n@%q1 bra WAIT;\nld.global.u32 %r3, "
                     "[%p0+4];\nst.global.u32 [%p0+8], %r3;\nEND:";
  Options options;
  options.resident = 2;
  options.acquireNeedsFence = true;
  Outcome good = run(body, {2}, {1}, options);
  EXPECT_TRUE(good.success) << good.error;
  EXPECT_EQ(good.out[2], 42u);
  std::string relaxed = body;
  relaxed.replace(relaxed.find("st.release"), 10, "st.relaxed");
  expectFault(run(relaxed, {2}, {1}, options), Fault::Race, {"race between blocks"});
  // Alone it waits for ever.
  options.resident = 1;
  options.instructionLimit = 100000;
  expectFault(run(body, {2}, {1}, options), Fault::Limit, {"still runs after"});
}

TEST(Schedule, LanesAheadAreNotStarved) {
  // Lane 0 waits for lane 1, whose code lies behind the loop.
  std::string body = "setp.ne.u32 %q0, %tid, 0;\n@%q0 bra GIVE;\nWAIT: ld.volatile.shared.u32 %r1, [s];\nsetp.ne.u32 %q1, %r1, "
                     "7;\n@%q1 bra WAIT;\nst.global.u32 [%p0], 1;\nbra END;\n"
                     "GIVE: st.volatile.shared.u32 [s], 7;\nEND:";
  for (bool roundRobin : {false, true}) {
    Options options;
    options.roundRobin = roundRobin;
    options.instructionLimit = 10000000;
    Outcome good = run(body, {1}, {2}, options);
    EXPECT_TRUE(good.success) << good.error;
    EXPECT_EQ(good.out[0], 1u);
  }
}

TEST(Deadlocks, Barriers) {
  std::string some = "setp.lt.u32 %q0, %tid, 32;\n";
  expectFault(run(some + "@%q0 bar.sync 0;\nst.global.u32 [%p0], 1;\nbar.sync 1;", {1}, {64},
                  [] {
                    Options o;
                    o.races = false;
                    return o;
                  }()),
              Fault::Deadlock, {"deadlock: ", "32 of 64 threads wait at line", "'@%q0 bar.sync 0;'", "'bar.sync 1;'"});
  expectFault(run(some + "@%q0 bar.sync 0;"), Fault::Deadlock, {"32 of 64 threads wait", "32 have exited"});
  Options lenient;
  lenient.exitedMissBarriers = true;
  EXPECT_TRUE(run(some + "@%q0 bar.sync 0;", {1}, {64}, lenient).success);
  EXPECT_TRUE(run("bar.sync 0;\nbarrier.sync.aligned 3;\nbarrier.cta.sync 0;\nbar.sync 1, 64;").success);
  // Part of a warp.
  expectFault(run("setp.lt.u32 %q0, %tid, 5;\n@%q0 bar.sync 0;", {1}, {32}), Fault::Deadlock, {"5 of 32 threads wait"});
  expectFault(run("setp.lt.u32 %q0, %tid, 5;\n@%q0 bar.sync 0;\n@!%q0 bar.sync 0;", {1}, {32}), Fault::Undefined,
              {"is at another barrier than thread (0,0,0)"});
  EXPECT_TRUE(
      run("setp.lt.u32 %q0, %tid, 5;\n@%q0 barrier.sync 0;\n@!%q0 barrier.sync 0;", {1}, {32}).success); // need not be the same
  // Different warps may be at different instructions.
  EXPECT_TRUE(run(some + "@%q0 bra A;\nbar.sync 0;\nbra END;\nA: bar.sync 0;\nEND:").success);
}

TEST(Deadlocks, Warps) {
  expectFault(run("setp.lt.u32 %q0, %tid, 5;\n@%q0 bar.warp.sync -1;\nbar.sync 0;", {1}, {32}), Fault::Deadlock,
              {"5 of 32 threads wait", "'@%q0 bar.warp.sync -1;'", "27 of 32"});
  // Those that have exited are not waited for, and other instructions will do.
  EXPECT_TRUE(run("setp.lt.u32 %q0, %tid, 5;\n@%q0 bar.warp.sync -1;", {1}, {32}).success);
  EXPECT_TRUE(
      run("setp.lt.u32 %q0, %tid, 5;\n@%q0 bra A;\nbar.warp.sync -1;\nbra END;\nA: bar.warp.sync -1;\nEND:", {1}, {32}).success);
}

TEST(Schedule, NamedBarriers) {
  // Two warps hand numbers to two others, who only have to arrive for the next.
  std::string body =
      std::string(place) +
      "setp.ge.u32 %q0, %tid, 64;\n@%q0 bra CONSUME;\nst.shared.u32 [%r1], %tid;\nbar.arrive 1, 128;\nbar.sync 2, 64;\nbra END;\n"
      "CONSUME: bar.sync 1, 128;\nld.shared.u32 %r2, [%r1+-256];\nst.global.u32 [%w0], %r2;\nEND:";
  for (uint64_t seed = 0; seed < 5; ++seed) {
    Outcome good = run(body, {1}, {128}, seeded(seed));
    EXPECT_TRUE(good.success) << good.error;
    for (uint32_t i = 64; i < 128; ++i)
      EXPECT_EQ(good.out[i], i - 64);
    // Barrier 2 does not order what barrier 1 does.
    EXPECT_FALSE(run(body, {1}, {128}, seeded(seed), 2).success);
  }
  expectFault(run("setp.lt.u32 %q0, %tid, 32;\n@%q0 bar.sync 1, 64;\n@!%q0 bar.sync 1, 32;"), Fault::Undefined, {"waits for"});
  expectFault(run("bar.sync 1, 40;"), Fault::Undefined, {"expected a multiple of 32 threads"});
}

TEST(Schedule, BarrierReductions) {
  std::string body = std::string(place) + "setp.lt.u32 %q0, %tid, 40;\nbar.red.popc.u32 %r2, 0, %q0;\nbar.red.and.pred %q1, 0, "
                                          "%q0;\nbar.red.or.pred %q2, 1, 64, %q0;\n"
                                          "selp.u32 %r3, 100, 0, %q1;\nselp.u32 %r4, 1000, 0, %q2;\nadd.u32 %r2, %r2, "
                                          "%r3;\nadd.u32 %r2, %r2, %r4;\nbar.red.popc.u32 %r5, 0, !%q0;\n"
                                          "mad.lo.u32 %r2, %r5, 10000, %r2;\nst.global.u32 [%w0], %r2;";
  Outcome good = run(body);
  EXPECT_TRUE(good.success) << good.error;
  for (uint32_t i = 0; i < 64; ++i)
    EXPECT_EQ(good.out[i], 241040u);
}

TEST(Schedule, Divergence) {
  // Loops of different lengths, nested, that meet again: each path is walked once by all its lanes.
  std::string body = "and.b32 %r1, %tid, 3;\nmov.u32 %r2, 0;\nOUTER: mov.u32 %r3, 0;\nINNER: add.u32 %r2, %r2, 1;\nadd.u32 %r3, "
                     "%r3, 1;\nsetp.le.u32 %q0, %r3, %r1;\n@%q0 bra INNER;\n"
                     "sub.u32 %r1, %r1, 1;\nsetp.ge.s32 %q1, %r1, 0;\n@%q1 bra OUTER;\nmad.wide.u32 %w0, %tid, 4, "
                     "%p0;\nst.global.u32 [%w0], %r2;";
  Machine machine;
  auto program = loaded(machine, kernel(1, body));
  uint64_t out = machine.allocate(128);
  machine.options.slice = 1000;
  ASSERT_TRUE(machine.launch(*program, "k", {1}, {32}, Arguments().add(out))) << machine.error();
  auto got = download<uint32_t>(machine, out, 32);
  for (uint32_t i = 0; i < 32; ++i)
    EXPECT_EQ(got[i], (i % 4 + 1) * (i % 4 + 2) / 2);
  EXPECT_EQ(machine.report().instructions.back().warps, 1u); // all together
}

} // namespace
