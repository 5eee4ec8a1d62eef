// Steps: results against attention in float64 over the tokens as stored, what is told of them, and steps that are captured.

#include "Fixture.h"

#include "aligned/Reference/Attention.h"

#include <cmath>
#include <map>
#include <numeric>
#include <thread>

using namespace aligned::test;

namespace {

constexpr int32_t kSite = 4;
const aligned_format formats[2] = {formatOf(ALIGNED_ROLE_KEY), formatOf(ALIGNED_ROLE_VALUE)};

std::vector<double> widened(const void *halves, int64_t count) {
  std::vector<double> wide(count);
  for (int64_t i = 0; i < count; ++i) {
    _Float16 half;
    std::memcpy(&half, static_cast<const char *>(halves) + 2 * i, 2);
    wide[i] = half;
  }
  return wide;
}

struct Outputs {
  std::vector<float> acc, max, sum;
  explicit Outputs(int64_t rows) : acc(rows * kGroup * kDim, NAN), max(rows * kGroup, NAN), sum(rows * kGroup, NAN) {}
};

class Decode : public Cuda {
protected:
  /// Keys and values on the device.
  void create(int64_t batch, int64_t physical = -1, int64_t most = 0) {
    this->batch = batch;
    for (int side = 0; side < 2; ++side) {
      caches[side].reset(
          physical < 0 ? aligned_program_create_cache(program.get(), &formats[side], batch, kHeads, kDim, most)
                       : aligned_program_create_paged_cache(program.get(), &formats[side], batch, kHeads, kDim, physical, most));
      ASSERT_TRUE(caches[side]) << aligned_last_error();
    }
    query = randomTokens(batch * kHeads, kGroup, 99);
  }

  void append(const std::vector<int64_t> &counts) {
    int64_t most = *std::max_element(counts.begin(), counts.end());
    bool equal = std::all_of(counts.begin(), counts.end(), [&](int64_t count) { return count == counts[0]; });
    int64_t strides[4] = {kHeads * most * kDim, most * kDim, kDim, 1};
    for (int side = 0; side < 2; ++side) {
      std::vector<char> data = randomTokens(batch * kHeads, most, ++seed);
      ASSERT_EQ(equal ? aligned_cache_append(caches[side].get(), data.data(), most, strides)
                      : aligned_cache_append_ragged(caches[side].get(), data.data(), counts.data(), strides),
                0)
          << aligned_last_error();
    }
  }

  aligned_decode_call call(Outputs &outputs) const {
    aligned_decode_call call = {};
    call.batch = batch;
    call.key = caches[0].get();
    call.value = caches[1].get();
    call.query = query.data();
    call.scale = 0.25f;
    call.acc = outputs.acc.data();
    call.max = outputs.max.data();
    call.sum = outputs.sum.data();
    return call;
  }

  void expectAttention(const Outputs &outputs) const {
    int64_t rows = batch * kHeads, tokens = caches[0]->tokens;
    std::vector<char> joined[2];
    for (int side = 0; side < 2; ++side) {
      joined[side].resize(rows * tokens * kDim * 2 + 1);
      ASSERT_EQ(aligned_cache_unpack(caches[side].get(), 16, joined[side].data()), 0);
    }
    for (int64_t row = 0; row < rows; ++row) {
      int64_t length = aligned_cache_length(caches[0].get(), row / kHeads);
      std::vector<double> q = widened(query.data() + row * kGroup * kDim * 2, kGroup * kDim), want(kGroup * kDim);
      std::vector<double> k = widened(joined[0].data() + row * tokens * kDim * 2, length * kDim),
                          v = widened(joined[1].data() + row * tokens * kDim * 2, length * kDim);
      aligned::exactAttention(q.data(), kGroup, k.data(), v.data(), length, kDim, kDim, 0.25, false, want.data());
      for (int64_t h = 0; h < kGroup; ++h)
        for (int64_t c = 0; c < kDim; ++c) {
          int64_t at = row * kGroup + h;
          double got = outputs.sum[at] == 0 ? 0 : outputs.acc[at * kDim + c] / outputs.sum[at];
          ASSERT_NEAR(got, want[h * kDim + c], 2e-2)
              << "row " << row << ", head " << h << ", channel " << c << ", of " << length << " tokens";
        }
    }
  }

  int64_t batch = 0;
  CachePtr caches[2];
  std::vector<char> query;
  unsigned seed = 0;
};

TEST_F(Decode, HostMemory) {
  create(2);
  for (int64_t count : {0, 1, 62, 1, 1, 64, 150}) {
    append({count, count});
    Outputs outputs(2 * kHeads);
    aligned_decode_call c = call(outputs);
    ASSERT_EQ(aligned_program_decode(program.get(), kSite, &c), 0) << aligned_last_error();
    expectAttention(outputs);
  }
}

TEST_F(Decode, DeviceMemory) {
  create(1);
  append({100});
  Outputs outputs(kHeads);
  DeviceData q(query), acc(outputs.acc.size() * 4), max(outputs.max.size() * 4), sum(outputs.sum.size() * 4);
  aligned_decode_call c = call(outputs);
  c.location = ALIGNED_LOCATION_CUDA;
  c.query = q.memory;
  c.acc = static_cast<float *>(acc.memory);
  c.max = nullptr; // not wanted
  c.sum = static_cast<float *>(sum.memory);
  ASSERT_EQ(aligned_program_decode(program.get(), kSite, &c), 0) << aligned_last_error();
  outputs.acc = acc.get<float>(outputs.acc.size());
  outputs.sum = sum.get<float>(outputs.sum.size());
  expectAttention(outputs);
}

TEST_F(Decode, OwnLengthsAndPages) {
  for (bool pages : {false, true}) {
    pages ? create(3, 8, 256) : create(3);
    append({130, 0, 64});
    append({3, 20, 70});
    Outputs outputs(3 * kHeads);
    aligned_decode_call c = call(outputs);
    ASSERT_EQ(aligned_program_decode(program.get(), kSite, &c), 0) << aligned_last_error();
    expectAttention(outputs);
    for (CachePtr &cache : caches)
      ASSERT_EQ(aligned_cache_release(cache.get(), 0), 0);
    append({70, 1, 0});
    ASSERT_EQ(aligned_program_decode(program.get(), kSite, &c), 0) << aligned_last_error();
    expectAttention(outputs);
  }
}

/// What a listener heard of one row.
struct Heard {
  int64_t first, tokens, channels;
  std::vector<uint8_t> keys, values;
};

struct Recorded {
  std::map<int64_t, Heard> heard; ///< by row
  aligned_tally tally = {};
};

/// Decodes with somebody listening.
Recorded record(aligned_program *program, const aligned_decode_call &call) {
  auto listen = [](void *context, int32_t site, int64_t row, int64_t first, int64_t tokens, int64_t channels, const uint8_t *keys,
                   const uint8_t *values) {
    EXPECT_EQ(site, kSite);
    int64_t count = channels == 1 ? tokens : (tokens + 63) / 64 * channels;
    static_cast<Recorded *>(context)->heard[row] = {first, tokens, channels, {keys, keys + count}, {values, values + tokens}};
  };
  Recorded recorded;
  std::vector<aligned_tally> tallies(kSite + 1);
  EXPECT_EQ(aligned_rt_recording(), 0);
  aligned_rt_record(tallies.data(), kSite + 1);
  aligned_rt_record_bits(listen, &recorded);
  EXPECT_EQ(aligned_rt_recording(), ALIGNED_RECORD_TALLY | ALIGNED_RECORD_BITS);
  EXPECT_EQ(aligned_program_decode(program, kSite, &call), 0) << aligned_last_error();
  aligned_rt_record(nullptr, 0);
  aligned_rt_record_bits(nullptr, nullptr);
  recorded.tally = tallies[kSite];
  return recorded;
}

void expectTally(const aligned_tally &got, const aligned_tally &want) {
  EXPECT_EQ(got.key_bits, want.key_bits);
  EXPECT_EQ(got.value_bits, want.value_bits);
  EXPECT_EQ(got.key_values, want.key_values);
  EXPECT_EQ(got.value_values, want.value_values);
  EXPECT_EQ(got.rows, want.rows);
}

TEST_F(Decode, Records) {
  create(2);
  append({130, 70});
  Outputs outputs(2 * kHeads);
  Recorded got = record(program.get(), call(outputs));
  expectAttention(outputs);
  ASSERT_EQ(got.heard.size(), 2u * kHeads);
  aligned_tally want = {};
  for (auto &[row, heard] : got.heard) {
    int64_t tokens = row < kHeads ? 130 : 70;
    EXPECT_EQ(heard.first, 0);
    EXPECT_EQ(heard.tokens, tokens);
    EXPECT_EQ(heard.channels, 1);
    for (int64_t t = 0; t < tokens; ++t) {
      int64_t keys = (row + t) % 5 * 4, values = (row + t) % 3 * 8, codes = keys ? 8 : 0; // a byte on each side where K is scanned
      ASSERT_EQ(heard.keys[t], keys);
      ASSERT_EQ(heard.values[t], values);
      want.key_bits += keys * kDim + codes;
      want.value_bits += values * kDim + codes;
    }
    want.key_values += tokens * kDim;
    want.value_values += tokens * kDim;
    ++want.rows;
  }
  expectTally(got.tally, want);
}

/// Kernels may tell of each channel of a tile, as those of float planes do.
TEST_F(Decode, RecordsOfChannels) {
  std::string text = replaced(sidecar(), R"("type": "u8", "shape": ["rows", "capacity"])", R"("type": "u8", "shape": ["rows", "tiles", 16])");
  for (int i = 0; i < 2; ++i)
    text = replaced(text, "\"decode_scores\"", "\"decode_channels\"");
  program.reset(aligned_program_load(ptx().c_str(), text.c_str()));
  ASSERT_TRUE(program) << aligned_last_error();
  create(1);
  append({130});
  Outputs outputs(kHeads);
  Recorded got = record(program.get(), call(outputs));
  ASSERT_EQ(got.heard.size(), size_t(kHeads));
  aligned_tally want = {};
  for (auto &[row, heard] : got.heard) {
    EXPECT_EQ(heard.channels, kDim);
    for (int64_t tile = 0; tile < 3; ++tile) {
      int64_t tokens = tile < 2 ? 64 : 2;
      want.key_bits += tile ? tokens * 8 : 0;
      want.value_bits += tile ? tokens * 8 : 0;
      for (int64_t c = 0; c < kDim; ++c) {
        ASSERT_EQ(heard.keys[tile * kDim + c], tile ? row + c + 1 : 0);
        want.key_bits += (tile ? row + c + 1 : 0) * tokens;
      }
    }
    for (int64_t t = 0; t < 130; ++t)
      want.value_bits += (row + t) % 3 * 8 * kDim;
    want.key_values += 130 * kDim;
    want.value_values += 130 * kDim;
    ++want.rows;
  }
  expectTally(got.tally, want);
}

/// Kernels that tell nothing read what is resident.
TEST_F(Decode, RecordsOfAll) {
  std::string text = replaced(sidecar(), "\"name\": \"key_bits\", \"kind\": \"record\"", "\"name\": \"k\", \"kind\": \"scratch\"");
  text = replaced(text, "\"name\": \"value_bits\"", "\"name\": \"v\"");
  program.reset(aligned_program_load(ptx().c_str(), text.c_str()));
  ASSERT_TRUE(program) << aligned_last_error();
  create(1);
  append({130});
  ASSERT_EQ(aligned_cache_drop_planes(caches[1].get(), 2), 0) << aligned_last_error();
  Outputs outputs(kHeads);
  Recorded got = record(program.get(), call(outputs));
  int64_t values = kHeads * 130 * kDim;
  expectTally(got.tally, {values * 16 + kHeads * 130 * 8, values * 8 + kHeads * 130 * 8, values, values, kHeads});
  EXPECT_EQ(got.heard[1].keys, std::vector<uint8_t>(130, 16));
  EXPECT_EQ(got.heard[1].values, std::vector<uint8_t>(130, 8));
}

TEST_F(Decode, WhatCallsBring) {
  create(2, -1, 200);
  append({70, 64});
  const float sinks[kHeads] = {2.5f, -1};
  std::vector<uint8_t> mask(2 * kGroup * 70); // [batch, 1, queries, tokens of the longest entry]
  for (size_t i = 0; i < mask.size(); ++i)
    mask[i] = i * i % 7 < 3;
  for (bool asked : {true, false}) {
    Outputs outputs(2 * kHeads);
    std::vector<float> certificate(2 * kHeads * kGroup * ALIGNED_CERTIFICATE_NUMBERS, NAN);
    aligned_decode_call c = call(outputs);
    c.certificate = asked ? certificate.data() : nullptr;
    c.sink_logits = sinks;
    c.attn_mask = mask.data();
    if (!asked)
      c.acc = nullptr;
    ASSERT_EQ(aligned_program_decode(program.get(), 5, &c), 0) << aligned_last_error();
    std::vector<double> q = widened(query.data(), 2 * kHeads * kGroup * kDim);
    for (int64_t at = 0; at < 2 * kHeads * kGroup; ++at) {
      int64_t row = at / kGroup, entry = row / kHeads, h = at % kGroup;
      EXPECT_EQ(outputs.max[at], h);
      EXPECT_EQ(outputs.sum[at], row);
      if (!asked)
        continue;
      auto seen = std::accumulate(&mask[(entry * kGroup + h) * 70], &mask[(entry * kGroup + h) * 70] + 70, 0);
      std::vector<float> want{0.25f, 2 * kHeads, 256, 70, 3, float(at), sinks[row % kHeads], float(seen)},
          got(&certificate[at * 8], &certificate[at * 8] + 8);
      EXPECT_EQ(got, want);
      EXPECT_EQ(outputs.acc[at * kDim + 3], static_cast<float>(q[at * kDim + 3]));
    }
  }
}

TEST_F(Decode, Refuses) {
  create(1);
  append({70});
  Outputs outputs(kHeads);
  auto refused = [&](auto change, const std::string &message, int32_t site = kSite) {
    aligned_decode_call c = call(outputs);
    change(c);
    EXPECT_LT(aligned_program_decode(program.get(), site, &c), 0);
    EXPECT_EQ(std::string(aligned_last_error()), message);
  };
  CachePtr host(aligned_cache_create(&formats[0], 1, kHeads, kDim, 0));
  CachePtr shorter(aligned_program_create_cache(program.get(), &formats[1], 1, kHeads, kDim, 64));
  CachePtr heads(aligned_program_create_cache(program.get(), &formats[0], 1, kHeads + 1, kDim, 64));
  CachePtr batches(aligned_program_create_cache(program.get(), &formats[0], 2, kHeads, kDim, 64));
  aligned_format f32 = formats[0];
  f32.element = ALIGNED_ELEMENT_F32;
  CachePtr wide(aligned_cache_create(&f32, 1, kHeads, kDim, 64)), other(aligned_cuda_cache_upload(program.get(), wide.get()));
  ASSERT_TRUE(other) << aligned_last_error();
  refused([](auto &) {}, "expected a site of the program, got number 0", 0);
  refused([](auto &c) { c.key = nullptr; }, "expected keys on the device, got null");
  refused([&](auto &c) { c.key = host.get(); }, "expected keys on the device, got a cache on the host");
  refused([](auto &c) { c.value = c.key; },
          "expected values of site 4 to be a value fixed<4,4,8> of f16, got a key fixed<4,4,8> of f16");
  refused([&](auto &c) { c.key = other.get(); },
          "expected keys of site 4 to be a key fixed<4,4,8> of f16, got a key fixed<4,4,8> of f32");
  refused([&](auto &c) { c.key = heads.get(); }, "expected keys of site 4 to have 2 kv heads, got 3");
  refused([&](auto &c) { c.key = batches.get(); }, "expected keys of site 4 to have the call's batch of 1, got 2");
  refused([&](auto &c) { c.value = shorter.get(); },
          "expected as many values as keys, got 70 keys and 0 values in batch entry 0");
  refused([](auto &c) { c.batch = 2; }, "expected keys of site 4 to have the call's batch of 2, got 1");
  refused([](auto &c) { c.query = nullptr; }, "expected a query, got null");
  refused([](auto &c) { c.location = 7; }, "expected location 0 (host) or 1 (device), got 7");
  refused([](auto &c) { c.finished = 1; }, "expected 0 for finished at site 4, which gives softmax states, got 1");
  refused([](auto &c) { c.splits = 65536; }, "expected from 1 to 65535 splits, or 0, got 65536");
  refused([](auto &c) { c.splits = -1; }, "expected from 1 to 65535 splits, or 0, got -1");
  float sinks[kHeads] = {};
  refused([&](auto &c) { c.sink_logits = sinks; }, "expected no sink_logits at site 4, got some");
  refused([&](auto &c) { c.attn_mask = sinks; }, "expected no attn_mask at site 4, got some");
  refused([](auto &) {}, "expected sink_logits at site 5, got null", 5);
  refused([&](auto &c) { c.sink_logits = sinks; }, "expected attn_mask at site 5, got null", 5);
  float certificate[ALIGNED_CERTIFICATE_NUMBERS * kGroup * kHeads];
  refused([&](auto &c) { c.certificate = certificate; },
          "expected no certificate to be asked for, got a site that was compiled without");
}

TEST_F(Decode, DenseArrays) {
  constexpr int64_t batch = 2, capacity = 70, rows = batch * kHeads;
  program.reset(aligned_program_load(ptx().c_str(), replaced(sidecar(), decodeJson(), denseJson()).c_str()));
  ASSERT_TRUE(program) << aligned_last_error();
  aligned_program_site info;
  ASSERT_EQ(aligned_program_site_info(program.get(), 0, &info), 0);
  EXPECT_EQ(info.key.kind, ALIGNED_FORMAT_DENSE);
  std::vector<char> keys = randomTokens(rows, capacity, 1);
  std::vector<double> k = widened(keys.data(), rows * capacity * kDim), v(k.size()), wide(rows * kGroup * kDim);
  std::vector<uint16_t> values(v.size()); // bfloat16
  std::vector<float> q(wide.size());
  for (size_t i = 0; i < v.size(); ++i) {
    v[i] = double(i % 23) - 11;
    float single = static_cast<float>(v[i]);
    uint32_t bits;
    std::memcpy(&bits, &single, 4);
    values[i] = static_cast<uint16_t>(bits >> 16);
  }
  for (size_t i = 0; i < q.size(); ++i)
    wide[i] = q[i] = static_cast<float>(i % 7) / 16;
  int64_t lengths[batch] = {70, 13};
  Outputs outputs(rows);
  aligned_decode_call c = {};
  c.batch = batch, c.query = q.data(), c.scale = 0.25f;
  c.acc = outputs.acc.data(), c.max = outputs.max.data(), c.sum = outputs.sum.data();
  c.dense_key = keys.data(), c.dense_value = values.data(), c.lengths = lengths, c.capacity = capacity;
  std::vector<aligned_tally> tallies(7);
  aligned_rt_record(tallies.data(), 7);
  int failed = aligned_program_decode(program.get(), 6, &c);
  aligned_rt_record(nullptr, 0);
  ASSERT_EQ(failed, 0) << aligned_last_error();
  int64_t held = kHeads * (70 + 13) * kDim;
  expectTally(tallies[6], {held * 16, held * 16, held, held, rows});
  for (int64_t row = 0; row < rows; ++row) {
    std::vector<double> want(kGroup * kDim);
    aligned::exactAttention(&wide[row * kGroup * kDim], kGroup, &k[row * capacity * kDim], &v[row * capacity * kDim], lengths[row / kHeads], kDim, kDim, 0.25, false,
                            want.data());
    for (int64_t i = 0; i < kGroup * kDim; ++i)
      ASSERT_NEAR(outputs.acc[row * kGroup * kDim + i] / outputs.sum[row * kGroup + i / kDim], want[i], 1e-4) << "row " << row;
  }
  auto refused = [&](auto change, const std::string &message) {
    aligned_decode_call bad = c;
    change(bad);
    EXPECT_LT(aligned_program_decode(program.get(), 6, &bad), 0);
    EXPECT_EQ(std::string(aligned_last_error()), message);
  };
  refused([](auto &b) { b.dense_key = nullptr; }, "expected keys of dense site 6, got null");
  refused([](auto &b) { b.lengths = nullptr; }, "expected lengths of dense site 6, got null");
  refused([](auto &b) { b.capacity = -1; }, "expected a capacity from 0 to 1073741824 tokens, got -1");
  refused([](auto &b) { b.capacity = 64; }, "expected a length from 0 to the capacity of 64, got 70 in batch entry 0");
}

/// Threads share a program and its scratch memory, each on a stream of its own; caches are their own.
TEST_F(Decode, Threads) {
  std::vector<std::thread> threads;
  std::vector<std::string> errors(3);
  std::vector<Outputs> outputs(3, Outputs(kHeads));
  std::vector<std::vector<char>> data;
  for (int side = 0; side < 2; ++side)
    data.push_back(randomTokens(kHeads, 90, ++seed));
  create(1);
  int64_t strides[4] = {kHeads * 90 * kDim, 90 * kDim, kDim, 1};
  for (int side = 0; side < 2; ++side)
    ASSERT_EQ(aligned_cache_append(caches[side].get(), data[side].data(), 90, strides), 0);
  for (int i = 0; i < 3; ++i)
    threads.emplace_back([&, i] {
      CachePtr own[2];
      for (int side = 0; side < 2; ++side) {
        own[side].reset(aligned_program_create_cache(program.get(), &formats[side], 1, kHeads, kDim, 64));
        if (!own[side] || aligned_cache_append(own[side].get(), data[side].data(), 90, strides))
          errors[i] = aligned_last_error();
      }
      aligned_decode_call c = call(outputs[i]);
      c.key = own[0].get();
      c.value = own[1].get();
      for (int repeat = 0; repeat < 3; ++repeat)
        if (aligned_program_decode(program.get(), kSite, &c))
          errors[i] = aligned_last_error();
    });
  for (std::thread &thread : threads)
    thread.join();
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(errors[i], "");
    expectAttention(outputs[i]);
  }
}

//===----------------------------------------------------------------------===//
// Captured steps
//===----------------------------------------------------------------------===//

class Captured : public Decode {
protected:
  void capture() {
    Outputs outputs(batch * kHeads);
    q = std::make_unique<DeviceData>(query);
    acc = std::make_unique<DeviceData>(outputs.acc.size() * 4);
    max = std::make_unique<DeviceData>(outputs.max.size() * 4);
    sum = std::make_unique<DeviceData>(outputs.sum.size() * 4);
    aligned_step step = {};
    step.site = kSite;
    step.call = call(outputs);
    step.call.location = ALIGNED_LOCATION_CUDA;
    step.call.query = q->memory;
    step.call.acc = static_cast<float *>(acc->memory);
    step.call.max = static_cast<float *>(max->memory);
    step.call.sum = static_cast<float *>(sum->memory);
    for (int side = 0; side < 2; ++side)
      tokens[side] = std::make_unique<DeviceData>(batch * kHeads * kDim * 2);
    step.key_data = tokens[0]->memory;
    step.value_data = tokens[1]->memory;
    graph.reset(aligned_program_capture(program.get(), &step, 1));
    ASSERT_TRUE(graph) << aligned_last_error();
  }

  int launch() {
    for (int side = 0; side < 2; ++side) {
      std::vector<char> token = randomTokens(batch * kHeads, 1, ++seed);
      EXPECT_EQ(aligned_cuda_copy_to_device(tokens[side]->memory, token.data(), batch * kHeads * kDim * 2), 0);
      given[side].push_back(token);
    }
    return aligned_graph_launch(graph.get());
  }

  Outputs outputs() const {
    Outputs outputs(batch * kHeads);
    outputs.acc = acc->get<float>(outputs.acc.size());
    outputs.sum = sum->get<float>(outputs.sum.size());
    return outputs;
  }

  std::unique_ptr<DeviceData> q, acc, max, sum, tokens[2];
  std::vector<std::vector<char>> given[2];
  GraphPtr graph;
};

TEST_F(Captured, TokensAdvance) {
  create(2, -1, 192);
  append({124, 124});
  capture();
  EXPECT_EQ(caches[0]->tokens, 124);     // capturing runs nothing
  for (int step = 0; step < 6; ++step) { // a new tile begins on the way
    ASSERT_EQ(launch(), 0) << aligned_last_error();
    EXPECT_EQ(caches[0]->tokens, 125 + step);
    if (step % 2 == 0)
      expectAttention(outputs());
  }
  expectAttention(outputs());
  for (int side = 0; side < 2; ++side) {
    std::vector<char> stored(2 * kHeads * 130 * kDim * 2);
    ASSERT_EQ(aligned_cache_unpack(caches[side].get(), 16, stored.data()), 0) << aligned_last_error();
    std::vector<double> all = widened(stored.data(), 2 * kHeads * 130 * kDim);
    for (int64_t step = 0; step < 6; ++step) {
      std::vector<double> want = widened(given[side][step].data(), 2 * kHeads * kDim);
      for (int64_t i = 0; i < 2 * kHeads * kDim; ++i)
        ASSERT_NEAR(all[(i / kDim * 130 + 124 + step) * kDim + i % kDim], want[i], 2e-2) << "step " << step << ", value " << i;
    }
  }
}

TEST_F(Captured, Pages) {
  create(2, 5, 192);
  append({126, 62});
  capture();
  for (int step = 0; step < 3; ++step)
    ASSERT_EQ(launch(), 0) << aligned_last_error();
  EXPECT_EQ(aligned_cache_free_pages(caches[0].get()), 0);
  expectAttention(outputs());
}

TEST_F(Captured, Refuses) {
  create(1, -1, 64);
  append({62});
  capture();
  ASSERT_EQ(launch(), 0);
  ASSERT_EQ(launch(), 0);
  EXPECT_LT(launch(), 0);
  EXPECT_STREQ(aligned_last_error(), "expected a cache with room for 65 tokens, got a capacity of 64");
  append({1});
  EXPECT_LT(launch(), 0);
  EXPECT_STREQ(aligned_last_error(), "expected caches as they were captured, got one that has grown from 64 to 128 tokens");

  Outputs outputs(kHeads);
  aligned_step step = {};
  step.site = kSite;
  step.call = call(outputs);
  auto refused = [&](const char *message, int count = 1) {
    EXPECT_EQ(aligned_program_capture(program.get(), &step, count), nullptr);
    EXPECT_STREQ(aligned_last_error(), message);
  };
  refused("expected at least one site in a captured step, got 0", 0);
  refused("expected queries and outputs of a captured step on the device, got location 0");
  step.call.location = ALIGNED_LOCATION_CUDA;
  step.key_data = tokens[0]->memory;
  refused("expected tokens for both keys and values, or for neither");
  step.site = 1;
  refused("expected a site of the program, got number 1");
}

} // namespace
