// Kernels over dense caches, run by the interpreter: attention in float64 within what 16-bit weights and their sums leave, whatever the shape, the lengths and the splits.
#include "../Gpu/Emulated.h"

#include <algorithm>
#include <random>

using namespace aligned;
using namespace aligned::test;

namespace {

constexpr int64_t kKvHeads = 2;

struct Case {
  const char *element = "f16";
  int64_t group = 3, keyDim = 64, valueDim = 64;
  const char *query = nullptr; ///< element of queries, where it is another
  int64_t queries = 1;
  const char *sight = ""; ///< mask and softcap, as the op says them
  Mask mask = {};
  double softcap = 0;
  bool infinite = false; ///< whether some of K and V is not finite
  std::vector<int64_t> tokens = {1, 15, 63, 65, 1000};
  MaskOperand operand = {};
  bool sinks = false; ///< whether query heads have logits without a value

  const char *queryElement() const { return query ? query : element; }
  double tolerance() const { return element == std::string("bf16") ? 5e-5 : 5e-4; } ///< of the relative error of a head: weights of 16 or 11 bits
  int64_t heads() const { return group * queries; } ///< query rows of a kv head
};

std::ostream &operator<<(std::ostream &os, const Case &c) {
  return os << c.queryElement() << " queries of " << c.element << ", " << c.group << "x" << c.queries << " rows, " << c.keyDim << "/" << c.valueDim << " " << c.sight
            << (c.operand.element ? std::string(" attn_mask of ") + c.operand.element : "") << (c.sinks ? " with sinks" : "") << (c.infinite ? ", not all finite" : "");
}

/// Probabilities that differ by orders of magnitude, loud channels of K and loud tokens. What lies past the tokens that are there is NaN: nobody may look at it.
struct Inputs {
  int64_t batch, capacity;
  std::vector<int64_t> lengths;
  Values q, k, v, mask, sinks;

  static Values random(const std::string &element, int64_t rows, int64_t dim, const std::function<double(int64_t row, int64_t channel)> &scale, bool halves = false) {
    std::mt19937 random(uint32_t(rows * 131 + dim));
    std::normal_distribution<double> normal;
    return Values(element, rows * dim, [&](int64_t i) {
      double x = normal(random) * scale(i / dim, i % dim);
      return halves ? std::round(2 * x) / 2 : x;
    });
  }
  Inputs(const Case &c, int64_t tokens)
      : batch(2), capacity(tokens + 5), lengths{tokens, tokens / 3},
        q(random(c.queryElement(), batch * kKvHeads * c.heads(), c.keyDim, [](int64_t, int64_t i) { return i % 5 ? 2.0 : 0.1; },
                 /*halves=*/c.infinite)), // so that queries are zero, or have no second part
        k(random(c.element, batch * kKvHeads * capacity, c.keyDim,
                 [&](int64_t row, int64_t i) {
                   if (row % capacity >= lengths[row / capacity / kKvHeads])
                     return double(NAN);
                   return c.infinite && (row * c.keyDim + i) % 9973 == 77 ? -INFINITY : i == 3 ? 8.0 : i < 8 ? 0.05 : 1.0;
                 })),
        v(random(c.element, batch * kKvHeads * capacity, c.valueDim, [&](int64_t row, int64_t i) {
          if (row % capacity >= lengths[row / capacity / kKvHeads])
            return double(NAN);
          int64_t at = row * c.valueDim + i;
          return c.infinite && at % 7919 == 5 ? (at % 2 ? double(INFINITY) : double(NAN)) : row % capacity % 17 ? 1.0 : 6.0;
        })) {
    if (c.operand.element)
      mask = c.operand.random(capacity);
    if (c.sinks)
      sinks = Values("f32", kKvHeads * c.group, [](int64_t head) { return head == 1 ? -INFINITY : 3.0 * double(head % 4) - 4; });
  }
};

struct State {
  std::vector<float> acc, max, sum;
};

class DenseOnGpu : public Emulated, public testing::WithParamInterface<Case> {
protected:
  static ProgramPtr compile(const Case &c) {
    return Emulated::compile(attentionOf(c, kKvHeads, "?"), "format=dense");
  }

  static State decode(const Case &c, const ProgramPtr &program, const Inputs &in, int32_t splits = 0) {
    int64_t rows = in.batch * kKvHeads * c.heads();
    State state{std::vector<float>(rows * c.valueDim, 7), std::vector<float>(rows, 7), std::vector<float>(rows, 7)};
    aligned_decode_call call = {};
    call.batch = in.batch;
    call.query = in.q.bytes.data();
    call.dense_key = in.k.bytes.data();
    call.dense_value = in.v.bytes.data();
    call.lengths = in.lengths.data();
    call.capacity = in.capacity;
    setOperands(call, in.mask, in.sinks);
    call.scale = 0.125f;
    call.splits = splits;
    call.acc = state.acc.data();
    call.max = state.max.data();
    call.sum = state.sum.data();
    EXPECT_EQ(aligned_program_decode(program.get(), 0, &call), 0) << aligned_last_error();
    expectFinished(program, call, rows, c.valueDim);
    return state;
  }

  /// A call with arrays on the device.
  static aligned_decode_call callOf(const Case &c, const Inputs &in, DeviceArrays &arrays) {
    int64_t rows = in.batch * kKvHeads * c.heads();
    aligned_decode_call call = {};
    call.batch = in.batch;
    call.location = ALIGNED_LOCATION_CUDA;
    call.scale = 0.125f;
    call.query = arrays.add(in.q.bytes);
    call.dense_key = arrays.add(in.k.bytes);
    call.dense_value = arrays.add(in.v.bytes);
    call.lengths = arrays.add<int64_t>(in.lengths.data(), in.batch * sizeof(int64_t));
    call.capacity = in.capacity;
    call.acc = arrays.add<float>(rows * c.valueDim * sizeof(float));
    call.max = arrays.add<float>(rows * sizeof(float));
    call.sum = arrays.add<float>(rows * sizeof(float));
    return call;
  }

  static State fetch(const Case &c, const Inputs &in, const aligned_decode_call &call) {
    int64_t rows = in.batch * kKvHeads * c.heads();
    State state{std::vector<float>(rows * c.valueDim), std::vector<float>(rows), std::vector<float>(rows)};
    for (auto [to, from] : {std::pair(&state.acc, call.acc), std::pair(&state.max, call.max), std::pair(&state.sum, call.sum)})
      EXPECT_EQ(aligned_cuda_copy_to_host(to->data(), from, to->size() * sizeof(float)), 0) << aligned_last_error();
    return state;
  }

  static void expectAttention(const Case &c, const Inputs &in, const State &got) {
    for (int64_t row = 0; row < in.batch * kKvHeads; ++row) {
      int64_t tokens = in.lengths[row / kKvHeads], heads = c.heads();
      auto part = [](const Values &values, int64_t first) { return values.exact.data() + first; };
      std::vector<double> want(heads * c.valueDim), additive, sinks;
      for (int64_t h = 0; h < heads; ++h) {
        const int64_t head = row % kKvHeads * c.group + h / c.queries;
        for (int64_t t = 0; t < tokens && c.operand.element; ++t)
          additive.push_back(c.operand.at(in.mask, in.capacity, row / kKvHeads, head, h % c.queries, t));
        if (c.sinks)
          sinks.push_back(in.sinks.exact[head]);
      }
      exactAttention(part(in.q, row * heads * c.keyDim), heads, part(in.k, row * in.capacity * c.keyDim), part(in.v, row * in.capacity * c.valueDim), tokens, c.keyDim, c.valueDim, 0.125,
                     /*maskedZero=*/false, want.data(), c.mask, c.softcap, additive.empty() ? nullptr : additive.data(), sinks.empty() ? nullptr : sinks.data());
      for (int64_t h = 0; h < heads; ++h) {
        SCOPED_TRACE("row " + std::to_string(row) + ", query row " + std::to_string(h));
        const double sum = got.sum[row * heads + h];
        expectRow(&got.acc[(row * heads + h) * c.valueDim], sum, &want[h * c.valueDim], c.valueDim, c.tolerance());
        if (tokens == 0 && c.sinks) {
          EXPECT_EQ(got.max[row * heads + h], float(sinks[h]));
          EXPECT_EQ(sum, std::isinf(sinks[h]) ? 0 : 1);
        } else if (tokens == 0) {
          EXPECT_EQ(sum, 0);
          EXPECT_EQ(got.max[row * heads + h], -INFINITY);
          for (int64_t i = 0; i < c.valueDim; ++i)
            EXPECT_EQ(got.acc[(row * heads + h) * c.valueDim + i], 0);
        }
      }
    }
  }
};

using DenseCalls = DenseOnGpu;

TEST_P(DenseOnGpu, IsAttention) {
  const Case &c = GetParam();
  ProgramPtr program = compile(c);
  ASSERT_TRUE(program);
  for (int64_t tokens : c.tokens) {
    SCOPED_TRACE(std::to_string(tokens) + " tokens");
    Inputs in(c, tokens);
    expectAttention(c, in, decode(c, program, in));
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, DenseOnGpu,
                         testing::Values(Case{"f16", 1, 64, 64}, Case{"f16", 3, 64, 64}, Case{"f16", 8, 128, 128}, Case{"f16", 16, 128, 128}, Case{"bf16", 4, 128, 128}, Case{"bf16", 16, 96, 64},
                                         Case{"f16", 4, 48, 80}, Case{"bf16", 3, 256, 96}, Case{"f16", 16, 256, 256}, Case{"bf16", 8, 16, 240}, Case{"f16", 32, 96, 128, nullptr, 1, "", {}, 0, false, {65}}));

Case masked(Case c, const char *sight, Mask mask, double softcap = 0) {
  c.sight = sight;
  c.mask = mask;
  c.mask.queries = c.queries;
  c.softcap = softcap;
  return c;
}

INSTANTIATE_TEST_SUITE_P(Masked, DenseOnGpu,
                         testing::Values(masked({"f16", 2, 64, 64, nullptr, 3}, "mask <causal>", {1, true}), masked({"f16", 3, 64, 64}, "mask <causal, window = 100>", {1, true, 100}),
                                         masked({"bf16", 2, 128, 128, nullptr, 3}, "mask <causal, window = 70, sinks = 4>", {1, true, 70, 4}),
                                         masked({"f16", 3, 96, 48}, "softcap 2.0", {}, 2.0),
                                         masked({"f16", 4, 256, 128, nullptr, 4}, "softcap 5.0 mask <causal, window = 300, sinks = 1>", {1, true, 300, 1}, 5.0)));

INSTANTIATE_TEST_SUITE_P(Queries, DenseOnGpu,
                         testing::Values(Case{"f16", 3, 64, 64, "f32"}, Case{"f16", 9, 128, 128, "f32"}, Case{"f16", 4, 48, 64, "bf16"}, Case{"bf16", 3, 128, 64, "f32"}, Case{"bf16", 9, 80, 256, "f16"}));

Case withOperands(Case c, MaskOperand operand, bool sinks = false) {
  c.operand = operand;
  c.sinks = sinks;
  return c;
}

INSTANTIATE_TEST_SUITE_P(Operands, DenseOnGpu,
                         testing::Values(withOperands({"f16", 3, 64, 64}, {}, true), withOperands({"f16", 3, 64, 64}, {"f32"}), withOperands({"bf16", 2, 128, 64, nullptr, 3}, {"bf16", 2, 4, 3}),
                                         withOperands({"f16", 16, 128, 128}, {"f16", 1, 32, 1}, true), withOperands({"f16", 2, 48, 80, nullptr, 2}, {"i1", 2, 1, 2}),
                                         withOperands(masked({"f16", 2, 64, 64, nullptr, 3}, "softcap 5.0 mask <causal, window = 70, sinks = 4>", {1, true, 70, 4}, 5.0), {"i1", 1, 4, 3}, true)));

Case notFinite(Case c) {
  c.infinite = true;
  c.tokens = {65, 200};
  return c;
}

INSTANTIATE_TEST_SUITE_P(NotFinite, DenseOnGpu,
                         testing::Values(notFinite({"f16", 3, 64, 64}), notFinite({"bf16", 8, 128, 128}), notFinite({"bf16", 2, 48, 80, "f32"}), notFinite({"f16", 2, 64, 96, "f32"}),
                                         notFinite(masked({"f16", 2, 64, 64, nullptr, 3}, "mask <causal, window = 70, sinks = 4>", {1, true, 70, 4})),
                                         notFinite(masked({"bf16", 2, 256, 256, nullptr, 3}, "softcap 3.0 mask <causal, window = 70>", {1, true, 70}, 3.0)),
                                         notFinite(withOperands({"f16", 3, 64, 64}, {"f32", 2, 6, 1}, true)), notFinite(withOperands({"bf16", 2, 128, 96, nullptr, 2}, {"i1", 1, 1, 2}))));

/// More splits than steps among them, whose states are the identity.
TEST_F(DenseCalls, GiveTheSameWithAnyNumberOfSplits) {
  for (const Case &c : {Case{"f16", 3, 64, 64}, Case{"bf16", 16, 128, 96}, masked({"f16", 2, 48, 64, nullptr, 2}, "mask <causal, window = 150, sinks = 3>", {1, true, 150, 3})}) {
    SCOPED_TRACE(testing::PrintToString(c));
    ProgramPtr program = compile(c);
    ASSERT_TRUE(program);
    Inputs in(c, 500);
    for (int32_t splits : {1, 2, 3, 7, 8, 9, 100}) {
      SCOPED_TRACE(std::to_string(splits) + " splits");
      expectAttention(c, in, decode(c, program, in, splits));
    }
  }
}

/// A captured step follows the lengths and what is in the arrays; nothing else is read again.
TEST_F(DenseCalls, AreReplayedWhileCachesGrow) {
  Case c{"f16", 3, 64, 64};
  ProgramPtr program = compile(c);
  ASSERT_TRUE(program);
  Inputs in(c, 300);
  DeviceArrays arrays;
  aligned_step step = {};
  step.call = callOf(c, in, arrays);
  step.call.splits = 3;
  aligned_graph *graph = aligned_program_capture(program.get(), &step, 1);
  ASSERT_TRUE(graph) << aligned_last_error();
  for (std::vector<int64_t> lengths : {std::vector<int64_t>{10, 0}, std::vector<int64_t>{65, 17}, std::vector<int64_t>{300, 100}}) {
    in.lengths = lengths;
    ASSERT_EQ(aligned_cuda_copy_to_device(const_cast<int64_t *>(step.call.lengths), lengths.data(), lengths.size() * sizeof(int64_t)), 0) << aligned_last_error();
    ASSERT_EQ(aligned_graph_launch(graph), 0) << aligned_last_error();
    expectAttention(c, in, fetch(c, in, step.call));
  }
  aligned_graph_destroy(graph);
}

/// Lengths on the device are nobody's to check: they stand for what there is room for.
TEST_F(DenseCalls, StayWithinTheCapacity) {
  Case c{"f16", 3, 64, 64};
  ProgramPtr program = compile(c);
  ASSERT_TRUE(program);
  Inputs in(c, 60);
  in.lengths = {60, 20};
  DeviceArrays arrays;
  aligned_decode_call call = callOf(c, in, arrays);
  const int64_t wrong[] = {int64_t(1) << 40, -5};
  ASSERT_EQ(aligned_cuda_copy_to_device(const_cast<int64_t *>(call.lengths), wrong, sizeof wrong), 0);
  ASSERT_EQ(aligned_program_decode(program.get(), 0, &call), 0) << aligned_last_error();
  State state = fetch(c, in, call);
  for (size_t h = 0; h < state.sum.size() / 2; ++h) {
    EXPECT_TRUE(std::isnan(state.sum[h])); // the tail of the first entry is NaN
    EXPECT_EQ(state.sum[h + state.sum.size() / 2], 0);
  }
}

TEST_F(DenseCalls, AreRefusedWithAReason) {
  Case c{"f16", 3, 64, 64};
  ProgramPtr program = compile(c);
  ASSERT_TRUE(program);
  Inputs in(c, 60);
  DeviceArrays arrays;
  auto refuses = [&](const std::function<void(aligned_decode_call &)> &spoil, const std::string &reason) {
    aligned_decode_call call = callOf(c, in, arrays);
    spoil(call);
    EXPECT_NE(aligned_program_decode(program.get(), 0, &call), 0) << reason;
    EXPECT_EQ(std::string(aligned_last_error()), reason);
  };
  refuses([](aligned_decode_call &call) { call.dense_key = nullptr; }, "expected keys of dense site 0, got null");
  refuses([](aligned_decode_call &call) { call.dense_value = nullptr; }, "expected values of dense site 0, got null");
  refuses([](aligned_decode_call &call) { call.lengths = nullptr; }, "expected lengths of dense site 0, got null");
  refuses([](aligned_decode_call &call) { call.query = nullptr; }, "expected a query, got null");
  refuses([](aligned_decode_call &call) { call.dense_key = reinterpret_cast<void *>(4104); }, "expected keys of dense site 0 to be aligned to 16 bytes, got address 4104");
  refuses([](aligned_decode_call &call) { call.capacity = -1; }, "expected a capacity from 0 to 1073741824 tokens, got -1");
  refuses([](aligned_decode_call &call) { call.batch = -2; }, "expected a batch from 0 to 65535, got -2");
  refuses([](aligned_decode_call &call) { call.splits = -1; }, "expected from 1 to 65535 splits, or 0, got -1");
  refuses([](aligned_decode_call &call) { call.splits = 65536; }, "expected from 1 to 65535 splits, or 0, got 65536");
  static const int64_t lengths[] = {60, 66};
  refuses(
      [&](aligned_decode_call &call) {
        call.location = ALIGNED_LOCATION_HOST;
        call.lengths = lengths;
      },
      "expected a length from 0 to the capacity of 65, got 66 in batch entry 1");

  aligned_step step = {};
  step.call = callOf(c, in, arrays);
  step.key_data = step.value_data = step.call.query;
  EXPECT_FALSE(aligned_program_capture(program.get(), &step, 1));
  EXPECT_EQ(std::string(aligned_last_error()), "expected no tokens to append at dense site 0, got some");

  aligned_program_site site;
  ASSERT_EQ(aligned_program_site_info(program.get(), 0, &site), 0);
  EXPECT_EQ(site.key.kind, ALIGNED_FORMAT_DENSE);
  EXPECT_FALSE(aligned_program_create_cache(program.get(), &site.key, 1, kKvHeads, 64, 64));
  EXPECT_FALSE(aligned_cache_create(&site.key, 1, kKvHeads, 64, 64));
  EXPECT_EQ(std::string(aligned_last_error()), "expected format kind 0 (fixed) or 1 (float), got 2");
}

/// Weights far below the largest: of many tokens that together count, and of one whose value is infinite.
TEST_F(DenseCalls, SeeSmallWeights) {
  for (Case c : {Case{"f16", 1, 16, 16}, Case{"bf16", 1, 16, 16}}) {
    SCOPED_TRACE(testing::PrintToString(c));
    ProgramPtr program = compile(c);
    ASSERT_TRUE(program);
    Inputs in(c, 2000);
    int64_t rows = in.batch * kKvHeads;
    in.q = Values(c.element, rows * c.keyDim, [](int64_t i) { return i % 16 ? 0 : 8; }); // a score is channel 0 of its key
    in.k = Values(c.element, rows * in.capacity * c.keyDim, [&](int64_t i) {
      int64_t token = i / 16 % in.capacity;
      return i % 16 ? 0.0 : token == 3 ? 0.0 : token == 9 ? -30 * std::log(2) : std::log(1.3) - 20 * std::log(2);
    });
    in.v = Values(c.element, rows * in.capacity * c.valueDim, [&](int64_t i) {
      int64_t token = i / 16 % in.capacity;
      return token == 3 ? 0.0 : token == 9 && i % 16 == 5 ? INFINITY : 1.0;
    });
    expectAttention(c, in, decode(c, program, in));
  }
}

/// Every sector of K and V once, and few instructions for each byte: an H100 issues about 0.2 of them for each byte that its memory delivers.
TEST_F(DenseCalls, ReadEveryByteOnceWithFewInstructions) {
  Case c{"f16", 4, 128, 128};
  ProgramPtr program = compile(c);
  ASSERT_TRUE(program);
  constexpr int64_t kBytes = 2 * kKvHeads * 128 * 2 * 2; // of a token of both entries, K and V
  std::map<int64_t, int64_t> instructions;
  for (int64_t tokens : {1024, 3072}) {
    Inputs in(c, tokens);
    in.lengths = {tokens, tokens};
    DeviceArrays arrays;
    aligned_decode_call call = callOf(c, in, arrays);
    call.splits = 1;
    name(call.dense_key, "key");
    name(call.dense_value, "value");
    std::map<std::string, Count> counts = countsOf([&] { EXPECT_EQ(aligned_program_decode(program.get(), 0, &call), 0) << aligned_last_error(); });
    const Count &scan = counts["decode0_scan"];
    for (const char *side : {"key", "value"}) {
      EXPECT_EQ(scan.bytes.at(side), tokens * kBytes / 2) << side;
      EXPECT_EQ(scan.asked.at(side), tokens * kBytes / 2) << side;
    }
    instructions[tokens] = scan.instructions + counts["decode0_merge"].instructions;
  }
  // What a block of threads does once left out.
  const double perByte = double(instructions[3072] - instructions[1024]) / (2048 * kBytes);
  RecordProperty("instructions_per_byte", std::to_string(perByte));
  EXPECT_LE(perByte, 0.022);
}

} // namespace
