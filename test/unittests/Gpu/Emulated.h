// What tests of the compiler's kernels share: programs, which the interpreter of PTX runs, numbers as a device has them, and what is counted.
#ifndef ALIGNED_TEST_UNITTESTS_GPU_EMULATED_H
#define ALIGNED_TEST_UNITTESTS_GPU_EMULATED_H

#include "../Handles.h"

#include "aligned/JIT/Module.h"
#include "aligned/Reference/Attention.h"
#include "aligned/Support/Json.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <dlfcn.h>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <unistd.h>
#include <vector>

namespace aligned::test {

/// The environment of the interpreter, which reads it once.
class Emulated : public testing::Test {
protected:
  static void SetUpTestSuite() {
    setenv("ALIGNED_LIBCUDA", ALIGNED_CUDA_EMULATOR, /*overwrite=*/0);
    setenv("ALIGNED_EMULATOR_COLLECTIVES", "0", /*overwrite=*/0); // shuffles do not order memory: barriers do
    setenv("ALIGNED_EMULATOR_SMS", "1", /*overwrite=*/0);         // few splits, so that warps have several tiles
    setenv("ALIGNED_EMULATOR_COUNTS", countsFile().c_str(), /*overwrite=*/0);
  }
  static void TearDownTestSuite() { std::remove(countsFile().c_str()); }

  static ProgramPtr compile(const std::string &source, const std::string &options) {
    char *ptx = nullptr, *sidecar = nullptr;
    EXPECT_EQ(aligned_compile_kernels(source.c_str(), options.c_str(), &ptx, &sidecar), 0) << aligned_last_error();
    ProgramPtr program(ptx ? aligned_program_load(ptx, sidecar) : nullptr);
    EXPECT_TRUE(program) << aligned_last_error();
    aligned_text_free(ptx);
    aligned_text_free(sidecar);
    return program;
  }

  /// Has a call, whose arrays are on the host and which gave a softmax state, give finished attention.
  static void expectFinished(const ProgramPtr &program, aligned_decode_call call, int64_t rows, int64_t valueDim) {
    std::vector<float> out(rows * valueDim, 7), lse(rows, 7), sum(rows, 7);
    const float *acc = call.acc, *max = call.max, *total = call.sum;
    call.finished = 1;
    call.acc = out.data();
    call.max = lse.data();
    call.sum = sum.data();
    ASSERT_EQ(aligned_program_decode(program.get(), 0, &call), 0) << aligned_last_error();
    auto expectNear = [](float got, double want, double magnitude) {
      EXPECT_TRUE(std::isnan(want) ? std::isnan(got) : got == want || std::abs(got - want) <= 0x1p-21 * magnitude) << got << " for " << want;
    };
    for (int64_t row = 0; row < rows && !HasFailure(); ++row) {
      const double weight = total[row];
      expectNear(sum[row], weight, 0);
      expectNear(lse[row], weight == 0 ? -INFINITY : max[row] + std::log(weight), 1 + std::abs(max[row]) + std::abs(std::log(weight)));
      for (int64_t c = row * valueDim; c < (row + 1) * valueDim; ++c)
        expectNear(out[c], weight == 0 ? 0 : acc[c] / weight, std::abs(acc[c] / weight));
    }
  }

  /// What the launches of a kernel counted.
  struct Count {
    int64_t instructions = 0;                   ///< of warps
    std::map<std::string, int64_t> bytes, asked; ///< of distinct sectors that were read, and of all that loads asked for, by name of an allocation
  };
  static std::map<std::string, Count> countsOf(const std::function<void()> &run) {
    std::remove(countsFile().c_str());
    run();
    EXPECT_EQ(aligned_cuda_synchronize(), 0) << aligned_last_error();
    std::map<std::string, Count> kernels;
    std::ifstream file(countsFile());
    std::string error;
    for (std::string line; std::getline(file, line);) {
      std::optional<Json> launch = parseJson(line, error);
      EXPECT_TRUE(launch) << error;
      Count &count = kernels[launch->at("kernel")];
      count.instructions += launch->at("warp_instructions").get<int64_t>();
      for (const Json &allocation : launch->at("allocations")) {
        const Json &read = allocation.at("read");
        count.bytes[allocation.at("name")] += 32 * read.at("distinct").get<int64_t>();
        count.asked[allocation.at("name")] += 32 * read.at("sectors").get<int64_t>();
      }
    }
    return kernels;
  }
  static void name(const void *allocation, const char *name) {
    static void *driver = dlopen(ALIGNED_CUDA_EMULATOR, RTLD_NOW | RTLD_LOCAL);
    ASSERT_TRUE(driver) << dlerror();
    reinterpret_cast<void (*)(uint64_t, const char *)>(dlsym(driver, "aligned_emulator_name"))(reinterpret_cast<uint64_t>(allocation), name);
  }

private:
  static std::string countsFile() { return testing::TempDir() + "aligned-counts-" + std::to_string(getpid()); }
};

/// Numbers as a device has them, and what they are. i1: bytes, of what is not 0.
struct Values {
  std::vector<char> bytes;
  std::vector<double> exact;

  Values() = default;
  Values(const std::string &element, int64_t count, const std::function<double(int64_t)> &of) {
    for (int64_t i = 0; i < count; ++i) {
      const auto x = static_cast<float>(of(i));
      auto add = [&](const auto &number, double value) {
        bytes.insert(bytes.end(), reinterpret_cast<const char *>(&number), reinterpret_cast<const char *>(&number + 1));
        exact.push_back(value);
      };
      if (element == "f32")
        add(x, x);
      else if (element == "i1")
        add(char(x != 0), x != 0);
      else {
        const Storage storage = element == "bf16" ? Storage::BFloat16 : Storage::Half;
        const uint16_t bits = narrow(x, storage);
        add(bits, widen(bits, storage));
      }
    }
  }
};

/// A mask that is an operand (P8): numbers for each batch entry, query head and query, or one for all, that hide every fifth token, other ones for each.
struct MaskOperand {
  const char *element = nullptr; ///< null: there is none
  int64_t batch = 1, heads = 1, queries = 1;

  Values random(int64_t tokens) const {
    return Values(element, batch * heads * queries * tokens, [&](int64_t i) {
      const int64_t line = i / tokens, t = i % tokens;
      const bool hidden = (t + line) % 5 == 3;
      return element == std::string("i1") ? !hidden : hidden ? -INFINITY : double((t * 7 + line) % 11) / 4 - 1;
    });
  }
  /// What it adds to the score of a token.
  double at(const Values &values, int64_t tokens, int64_t entry, int64_t head, int64_t query, int64_t t) const {
    const int64_t line = ((batch == 1 ? 0 : entry) * heads + (heads == 1 ? 0 : head)) * queries + (queries == 1 ? 0 : query);
    const double x = values.exact[line * tokens + t];
    return element == std::string("i1") ? (x != 0 ? 0 : -INFINITY) : x;
  }
};

/// An attention as MLIR, of a case that says element types, heads, sizes, `sight` (mask and softcap, as the op says them) and operands; `clauses` come behind these.
template <typename Case> std::string attentionOf(const Case &c, int64_t kvHeads, const std::string &batch, const std::string &clauses = "") {
  auto type = [&](int64_t heads, const std::string &tokens, int64_t dim, const std::string &element) {
    return "tensor<" + batch + "x" + std::to_string(heads) + "x" + tokens + "x" + std::to_string(dim) + "x" + element + ">";
  };
  const int64_t heads = kvHeads * c.group;
  const std::string q = type(heads, std::to_string(c.queries), c.keyDim, c.queryElement()), k = type(kvHeads, "?", c.keyDim, c.element), v = type(kvHeads, "?", c.valueDim, c.element),
                    out = type(heads, std::to_string(c.queries), c.valueDim, "f32");
  std::string arguments, operands;
  auto addOperand = [&](const std::string &name, const std::string &type) {
    arguments += ", %" + name + ": " + type;
    operands += " " + name + " %" + name + " : " + type;
  };
  if (const MaskOperand &mask = c.operand; mask.element)
    addOperand("attn_mask", "tensor<" + std::to_string(mask.batch) + "x" + std::to_string(mask.heads) + "x" + std::to_string(mask.queries) + "x?x" + mask.element + ">");
  if (c.sinks)
    addOperand("sink_logits", "tensor<" + std::to_string(heads) + "xf32>");
  return "func.func @step(%q: " + q + ", %k: " + k + ", %v: " + v + ", %scale: f32" + arguments + ") -> " + out + " {\n  %out = aligned.attention %q, %k, %v scale %scale " + c.sight + operands +
         clauses + " : " + q + ", " + k + ", " + v + " -> " + out + "\n  return %out : " + out + "\n}\n";
}

inline void setOperands(aligned_decode_call &call, const Values &mask, const Values &sinks) {
  call.attn_mask = mask.bytes.empty() ? nullptr : mask.bytes.data();
  call.sink_logits = sinks.bytes.empty() ? nullptr : reinterpret_cast<const float *>(sinks.bytes.data());
}

/// The output of a query row, acc / sum, against what it should be: NaN and infinities where they belong, and a relative error of the others.
inline void expectRow(const float *acc, double sum, const double *want, int64_t dim, double tolerance) {
  double off = 0, size = 0;
  for (int64_t i = 0; i < dim; ++i) {
    const double actual = sum == 0 ? 0 : acc[i] / sum;
    if (!std::isfinite(want[i])) {
      EXPECT_TRUE(std::isnan(want[i]) ? std::isnan(actual) : actual == want[i]) << i << ": " << actual << " for " << want[i];
      continue;
    }
    off += (actual - want[i]) * (actual - want[i]);
    size += want[i] * want[i];
  }
  EXPECT_LE(std::sqrt(off), tolerance * std::sqrt(size));
}

} // namespace aligned::test

#endif // ALIGNED_TEST_UNITTESTS_GPU_EMULATED_H
