// What can be proven of the kernels of a step: that it takes each of their barriers, and that they read what they say.
#include "Step.h"

#include "aligned/Storage/Layout.h"

#include <set>

using namespace aligned;
using namespace aligned::test;

namespace {

class Proof : public Steps {
protected:
  /// Caches of a case, with all tokens in both batch entries.
  struct Full {
    Inputs in;
    Caches host;
    Full(const Case &c, int64_t tokens) : in(c, tokens) {
      in.lengths = {tokens, tokens};
      host = packed(c, in);
    }
  };
};

/// Instructions that order memory or threads.
bool isSynchronising(const std::string &line) {
  for (const char *name : {"bar.", "barrier.", "griddepcontrol.wait", "membar.", "fence."})
    if (line.find(std::string("\t") + name) != std::string::npos)
      return true;
  return false;
}

/// Where a kernel's are, by their place in the text.
std::vector<std::pair<size_t, size_t>> synchronising(const std::string &ptx, const std::string &kernel) {
  std::vector<std::pair<size_t, size_t>> found;
  const size_t begin = ptx.find(".entry " + kernel), end = std::min(ptx.find(".entry ", begin + 1), ptx.size());
  for (size_t at = begin, next; at < end; at = next + 1) {
    next = ptx.find('\n', at);
    if (isSynchronising(ptx.substr(at, next - at)))
      found.emplace_back(at, next - at);
  }
  return found;
}

/// Without any one of them the interpreter finds a race or a deadlock, or the result is another, in one of several runs.
TEST_F(Proof, EveryBarrierIsNeeded) {
  struct Run {
    Case c;
    Full data;
    int32_t splits;
    Run(Case c, Content content, int64_t tokens, int32_t splits)
        : c(of(std::move(c), content)), data(this->c, tokens), splits(splits) {}
    static Case of(Case c, Content content) {
      c.content = content;
      return c;
    }
  };
  for (const Case &c : {Case{"balanced", 8, 64, 64}, Case{"exact", 5, 48, 80}, Case{"tight"}}) {
    SCOPED_TRACE(testing::PrintToString(c));
    const Kernels kernels = kernelsOf(c).chained();
    const Run runs[] = {{c, Content::Aside, 200, 2}, {c, Content::Usual, 1000, 1}};
    auto decodeOf = [&](const ProgramPtr &program, const Run &run) {
      return decode(c, program, run.data.host.upload(program), run.data.in, run.splits);
    };
    std::vector<State> whole;
    {
      const ProgramPtr program = kernels.load();
      ASSERT_TRUE(program);
      for (const Run &run : runs) {
        whole.push_back(decodeOf(program, run));
        ASSERT_EQ(whole.back().error, "");
      }
    }
    for (const char *kernel : {"decode0_scan", "decode0_attend"}) {
      int number = 0;
      for (auto [at, size] : synchronising(kernels.ptx, kernel)) {
        ++number;
        if (kernels.ptx.compare(at, size, "\tgriddepcontrol.wait;") == 0 && kernel == std::string("decode0_scan"))
          continue; // nothing is ahead of it in a call
        Kernels without = kernels;
        const std::string text = without.ptx.substr(at, size);
        without.ptx.insert(at, "//"); // where the runtime still counts kernels that wait
        const ProgramPtr mutant = without.load();
        ASSERT_TRUE(mutant);
        bool isNeeded = false;
        for (size_t i = 0; i < whole.size() && !isNeeded; ++i) {
          testing::internal::CaptureStderr(); // the interpreter says what it finds
          const State other = decodeOf(mutant, runs[i]);
          isNeeded =
              !other.error.empty() || std::memcmp(other.acc.data(), whole[i].acc.data(), other.acc.size() * sizeof(float)) != 0;
          reset();
          testing::internal::GetCapturedStderr();
        }
        EXPECT_TRUE(isNeeded) << kernel << ": number " << number << text;
      }
    }
  }
}

/// Distinct sectors of 32 bytes that kernels read of planes, against the bits that they say they read.
TEST_F(Proof, PlanesAreReadAsFarAsStepsSay) {
  for (const Case &c : {Case{"exact"}, Case{"tight", 8, 64, 64}, Case{"balanced", 4, 256, 192}, Case{"fast"}}) {
    SCOPED_TRACE(testing::PrintToString(c));
    constexpr int64_t kTokens = 8 * ALIGNED_TILE;
    const ProgramPtr program = kernelsOf(c).load();
    ASSERT_TRUE(program);
    const Full data(c, kTokens);
    const Caches caches = data.host.upload(program);
    for (int plane = 0; plane < 3; ++plane) {
      name(caches.key->plane[plane], ("key" + std::to_string(plane)).c_str());
      name(caches.value->plane[plane], ("value" + std::to_string(plane)).c_str());
    }
    name(caches.key->code, "key codes");
    State state;
    std::map<std::string, Count> counts = countsOf([&] { state = decode(c, program, caches, data.in); });
    ASSERT_EQ(state.error, "");
    std::map<std::string, int64_t> &scan = counts["decode0_scan"].bytes, &attend = counts["decode0_attend"].bytes;
    EXPECT_EQ(scan["key0"], kRows * kTokens * c.keyDim / 2);
    EXPECT_EQ(scan["key codes"], kRows * kTokens);
    for (const char *other : {"key1", "key2", "value0", "value1", "value2"})
      EXPECT_EQ(scan[other], 0) << other;
    EXPECT_EQ(attend["key0"], 0);
    // Rows of each plane, in whole sectors. A plane has a row for each token, in the order of rows and tokens.
    auto expect = [&](const std::string &plane, std::vector<int> Plan::*bits, int from, int64_t rowBytes) {
      std::set<int64_t> sectors;
      for (int64_t row = 0; row < kRows; ++row)
        for (int64_t t = 0; t < kTokens; ++t)
          if ((state.plans[row].*bits)[t] > from)
            for (int64_t place = row * (caches.key->capacity) + t, byte = place * rowBytes; byte < (place + 1) * rowBytes;
                 byte += 8)
              sectors.insert(byte / 32);
      EXPECT_NEAR(double(attend[plane]), 32 * double(sectors.size()), 0.05 * 32 * double(sectors.size())) << plane;
    };
    expect("key1", &Plan::key, 4, c.keyDim / 2);
    expect("key2", &Plan::key, 8, c.keyDim);
    expect("value0", &Plan::value, 0, c.valueDim / 2);
    expect("value1", &Plan::value, 4, c.valueDim / 2);
    expect("value2", &Plan::value, 8, c.valueDim);
    // What is tallied is what is said of tokens.
    int64_t keyBits = 0, valueBits = 0;
    for (const Plan &plan : state.plans)
      for (int64_t t = 0; t < kTokens; ++t) {
        keyBits += plan.key[t] * c.keyDim + 8;
        valueBits += plan.value[t] * c.valueDim + 8;
      }
    EXPECT_EQ(state.tally.key_bits, keyBits);
    EXPECT_EQ(state.tally.value_bits, valueBits);
  }
}

/// Captured steps are replayed while caches grow: no grid, and nothing but inputs, may depend on how many tokens there are.
TEST_F(Proof, GridsDoNotDependOnTokens) {
  Case c{"balanced", 3, 64, 64, 2};
  c.operand = {"f32", 2, 6, 2};
  std::string error;
  const std::optional<Json> sidecar = parseJson(kernelsOf(c).sidecar, error);
  ASSERT_TRUE(sidecar) << error;
  const Json &site = sidecar->at("decode").at(0);
  ASSERT_EQ(site.at("launch").size(), 2u);
  const std::set<std::string> allowed{"splits", "rows", "batch", "kv_heads"};
  for (const Json &launch : site.at("launch"))
    for (const Json &extent : launch.at("grid"))
      EXPECT_TRUE(extent.is_number() || allowed.count(extent.get<std::string>())) << launch.dump();
  for (const Json &argument : site.at("arguments"))
    if (argument.contains("shape") && argument.at("kind") != "input")
      for (const Json &extent : argument.at("shape"))
        EXPECT_TRUE(extent.is_number() || extent != "tokens") << argument.dump();
}

} // namespace
