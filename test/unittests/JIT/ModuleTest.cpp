// The C interface of compiled modules: what is refused, who owns what, and attention against the oracle.
#include "Kernels.h"

#include "aligned/Pipelines/Pipelines.h"
#include "aligned/Runtime/Kernel.h"

#include <map>
#include <tuple>

using namespace aligned;

namespace {

using Module = std::unique_ptr<aligned_module, decltype(&aligned_module_destroy)>;

Module compile(const std::string &source, const char *options = "", const char *function = nullptr) {
  return {aligned_module_compile(source.c_str(), options, function), aligned_module_destroy};
}

std::string lastError() { return aligned_last_error(); }

aligned_value arrayOf(std::vector<float> &data, std::vector<int64_t> shape) {
  aligned_value value = {};
  value.array.data = data.data();
  int64_t stride = 1;
  for (size_t dim = shape.size(); dim-- > 0; stride *= shape[dim]) {
    value.array.shape[dim] = shape[dim];
    value.array.strides[dim] = stride;
  }
  return value;
}

const char *const kDouble = R"(
func.func @double(%a: tensor<?x3xf32>) -> tensor<?x3xf32> {
  %zero = arith.constant 0 : index
  %n = tensor.dim %a, %zero : tensor<?x3xf32>
  %empty = tensor.empty(%n) : tensor<?x3xf32>
  %sum = linalg.add ins(%a, %a : tensor<?x3xf32>, tensor<?x3xf32>) outs(%empty : tensor<?x3xf32>) -> tensor<?x3xf32>
  return %sum : tensor<?x3xf32>
})";

TEST(Transform, GivesTextOrTheDiagnostics) {
  char *text = aligned_transform(kAttention, "aligned-pipeline{to=fuse policy=tight}");
  ASSERT_NE(text, nullptr) << lastError();
  EXPECT_NE(std::string(text).find("aligned.decode_attention"), std::string::npos);
  aligned_text_free(text);
  EXPECT_EQ(aligned_transform("func.func @f(", "canonicalize"), nullptr);
  EXPECT_NE(lastError().find("line 1"), std::string::npos) << lastError();
  EXPECT_EQ(aligned_transform(kAttention, "no-such-pass"), nullptr);
  EXPECT_NE(lastError().find("no-such-pass"), std::string::npos) << lastError();
}

std::vector<aligned_diagnostic> lastDiagnostics() {
  const aligned_diagnostic *diagnostics;
  const int32_t count = aligned_last_diagnostics(&diagnostics);
  return {diagnostics, diagnostics + count};
}

const char *const kTwoTypes = R"(func.func @f(%a: tensor<3xf32>) -> tensor<4xf32> {
  %b = arith.negf %a : tensor<3xf32>
  return %b : tensor<4xf32>
})";

TEST(Diagnostics, HaveTheirPlaces) {
  aligned_name_source("two.mlir");
  EXPECT_EQ(aligned_transform(kTwoTypes, "cse"), nullptr);
  aligned_name_source(nullptr);
  std::vector<aligned_diagnostic> said = lastDiagnostics();
  ASSERT_EQ(said.size(), 2u);
  EXPECT_EQ(said[0].severity, ALIGNED_SEVERITY_ERROR);
  EXPECT_STREQ(said[0].filename, "two.mlir");
  EXPECT_EQ(std::pair(said[0].line, said[0].column), std::pair(3, 10));
  EXPECT_EQ(said[1].severity, ALIGNED_SEVERITY_NOTE);
  EXPECT_EQ(std::pair(said[1].line, said[1].column), std::pair(2, 3));
  EXPECT_EQ(lastError(), std::string("two.mlir, line 3, column 10: ") + said[0].message + "\nnote: two.mlir, line 2, column 3: " + said[1].message);

  EXPECT_EQ(aligned_transform(kTwoTypes, "cse"), nullptr);
  ASSERT_EQ(lastDiagnostics().size(), 2u);
  EXPECT_EQ(lastDiagnostics()[0].filename, nullptr);
  EXPECT_EQ(lastError().find("line 3, column 10: "), 0u) << lastError();
  EXPECT_EQ(aligned_transform(kDouble, "no-such-pass"), nullptr);
  ASSERT_EQ(lastDiagnostics().size(), 1u);
  EXPECT_EQ(lastDiagnostics()[0].line, 0);

  aligned_text_free(aligned_transform(kDouble, "cse"));
  EXPECT_EQ(lastDiagnostics().size(), 0u);
}

const char *const kUnknown = R"(// A comment, which passes lose.

func.func @f(%a: tensor<3xf32>) -> tensor<3xf32> {
  %b = "no.such"(%a) : (tensor<3xf32>) -> tensor<3xf32>
  return %b : tensor<3xf32>
})";

TEST(Diagnostics, CanBeOfTheFirstTextBehindPasses) {
  using Text = std::unique_ptr<char, decltype(&aligned_text_free)>;
  aligned_allow_unregistered_dialects(true);
  aligned_name_source("first.mlir");
  const Text plain(aligned_transform(kUnknown, "cse"), aligned_text_free), placed(aligned_transform_with_places(kUnknown, "cse"), aligned_text_free);
  ASSERT_TRUE(plain && placed) << lastError();
  aligned_name_source("second.mlir");
  for (auto [text, filename, line] : {std::tuple(plain.get(), "second.mlir", 3), std::tuple(placed.get(), "first.mlir", 4)}) {
    EXPECT_EQ(compile(text), nullptr);
    EXPECT_STREQ(lastDiagnostics().front().filename, filename);
    EXPECT_EQ(lastDiagnostics().front().line, line) << text;
  }
  aligned_name_source(nullptr);
  aligned_allow_unregistered_dialects(false);
}

/// Says how many options there are.
struct CountedOptions : PipelineOptions {
  size_t count() const { return OptionsMap.size(); }
};

TEST(Options, AreAllOfThePipeline) {
  const aligned_option *options;
  const int32_t count = aligned_pipeline_options(&options);
  EXPECT_EQ(size_t(count), CountedOptions().count());
  std::map<std::string, aligned_option_kind> kinds;
  for (int32_t i = 0; i < count; ++i) {
    kinds[options[i].name] = options[i].kind;
    EXPECT_NE(*options[i].help, '\0');
  }
  EXPECT_EQ(kinds.size(), size_t(count));
  EXPECT_EQ(kinds["policy"], ALIGNED_OPTION_TEXT);
  EXPECT_EQ(kinds["raise"], ALIGNED_OPTION_FLAG);
  EXPECT_EQ(kinds["budget-layer"], ALIGNED_OPTION_INTEGER);
  EXPECT_EQ(kinds["dense-below"], ALIGNED_OPTION_COUNT);
  EXPECT_EQ(kinds["tolerance"], ALIGNED_OPTION_NUMBER);
  EXPECT_EQ(kinds["costs"], ALIGNED_OPTION_NUMBERS);
}

TEST(Object, IsInOnePieceWithItsKernels) {
  char *llvmIR = nullptr, *object = nullptr;
  int64_t bytes = 0;
  ASSERT_EQ(aligned_compile_object(kAttention, "policy=fast", nullptr, &llvmIR, &object, &bytes), 0) << lastError();
  EXPECT_NE(std::string(llvmIR).find("define void @aligned_entry(ptr %0)"), std::string::npos);
  EXPECT_EQ(std::string(object, 4), "\x7f" "ELF");
  const std::string symbols(object, bytes);
  EXPECT_NE(symbols.find("aligned_entry"), std::string::npos);
  aligned_text_free(llvmIR);
  aligned_text_free(object);
  EXPECT_EQ(aligned_compile_object(kAttention, "policy=best", nullptr, &llvmIR, &object, &bytes), -1);
  EXPECT_NE(lastError().find("got 'best'"), std::string::npos) << lastError();
}

TEST(Kernels, AreTwoTextsOrTheDiagnostics) {
  char *ptx = nullptr, *sidecar = nullptr;
  ASSERT_EQ(aligned_compile_kernels(kAttention, "policy=tight chip=sm_80", &ptx, &sidecar), 0) << lastError();
  EXPECT_NE(std::string(ptx).find(".target sm_80"), std::string::npos);
  EXPECT_NE(std::string(sidecar).find("\"decode0_attend\""), std::string::npos) << sidecar;
  aligned_text_free(ptx);
  aligned_text_free(sidecar);
  EXPECT_EQ(aligned_compile_kernels(kAttention, "chip=sm_70", &ptx, &sidecar), -1);
  EXPECT_NE(lastError().find("expected a chip of sm_80"), std::string::npos) << lastError();
  EXPECT_EQ(aligned_compile_kernels(kDouble, "", &ptx, &sidecar), -1);
  EXPECT_NE(lastError().find("got none"), std::string::npos) << lastError();
}

TEST(Compile, RefusesWhatItCannotCall) {
  EXPECT_EQ(compile(kAttention, "target=nvptx"), nullptr);
  EXPECT_NE(lastError().find("expected a target that is run here, cpu or reference, got 'nvptx'"), std::string::npos) << lastError();
  EXPECT_EQ(compile(kDouble, "policy=best"), nullptr);
  EXPECT_NE(lastError().find("got 'best'"), std::string::npos) << lastError();
  EXPECT_EQ(compile(kDouble, "tolerance=some"), nullptr);
  EXPECT_NE(lastError().find("got 'tolerance=some'"), std::string::npos) << lastError();
  EXPECT_EQ(compile(kDouble, "", "triple"), nullptr);
  EXPECT_NE(lastError().find("expected a function 'triple'"), std::string::npos) << lastError();
  EXPECT_EQ(compile("func.func @f(%a: index) { return }"), nullptr);
  EXPECT_NE(lastError().find("got 'index'"), std::string::npos) << lastError();
  EXPECT_EQ(compile("module {}"), nullptr);
  EXPECT_NE(lastError().find("found 0"), std::string::npos) << lastError();
}

TEST(Compile, TellsProbesFromCertificates) {
  auto counts = [](const char *options, const std::string &source) {
    Module module = compile(source, options);
    EXPECT_TRUE(module) << lastError();
    return module ? std::pair(aligned_module_results(module.get()), aligned_module_probes(module.get())) : std::pair(0, 0);
  };
  std::string source = kAttention;
  EXPECT_EQ(counts("", source), std::pair(1, 0));
  EXPECT_EQ(counts("probe", source), std::pair(2, 1));
  EXPECT_EQ(counts("certify", source), std::pair(3, 0));
  EXPECT_EQ(counts("probe certify", source), std::pair(4, 1));
  EXPECT_EQ(counts("probe certify format=dense", source), std::pair(4, 1));
  EXPECT_EQ(counts("probe certify", kDouble), std::pair(1, 0));
}

TEST(Call, TakesStridesAndGivesMemoryOfItsOwn) {
  Module module = compile(kDouble);
  ASSERT_TRUE(module) << lastError();
  EXPECT_EQ(aligned_module_attentions(module.get()), 0);
  std::vector<float> data{1, 2, 3, 4, 5, 6};
  aligned_value argument = arrayOf(data, {2, 3}), result = {};
  argument.array.strides[0] = 1; // column-major
  argument.array.strides[1] = 2;
  ASSERT_EQ(aligned_module_call(module.get(), &argument, &result), 0) << lastError();
  EXPECT_EQ(result.array.shape[0], 2);
  const float *out = static_cast<float *>(result.array.data);
  EXPECT_EQ(std::vector<float>(out, out + 6), (std::vector<float>{2, 6, 10, 4, 8, 12}));
  EXPECT_NE(result.array.data, argument.array.data);
  aligned_array_free(&result.array);

  argument = arrayOf(data, {3, 2});
  EXPECT_NE(aligned_module_call(module.get(), &argument, &result), 0);
  EXPECT_NE(lastError().find("expected shape [?, 3] of argument 0, got [3, 2]"), std::string::npos) << lastError();
}

const char *const kTable = R"(
func.func @table(%a: tensor<?xf32>, %b: tensor<?xf32>) -> tensor<?x?xf32> {
  %zero = arith.constant 0 : index
  %m = tensor.dim %a, %zero : tensor<?xf32>
  %n = tensor.dim %b, %zero : tensor<?xf32>
  %empty = tensor.empty(%m, %n) : tensor<?x?xf32>
  %out = scf.forall (%i) in (%m) shared_outs(%rows = %empty) -> tensor<?x?xf32> {
    %x = tensor.extract %a[%i] : tensor<?xf32>
    %row = tensor.extract_slice %rows[%i, 0] [1, %n] [1, 1] : tensor<?x?xf32> to tensor<1x?xf32>
    %filled = scf.forall (%j) in (%n) shared_outs(%cells = %row) -> tensor<1x?xf32> {
      %y = tensor.extract %b[%j] : tensor<?xf32>
      %product = arith.mulf %x, %y : f32
      %cell = tensor.from_elements %product : tensor<1x1xf32>
      scf.forall.in_parallel {
        tensor.parallel_insert_slice %cell into %cells[0, %j] [1, 1] [1, 1] : tensor<1x1xf32> into tensor<1x?xf32>
      }
    }
    scf.forall.in_parallel {
      tensor.parallel_insert_slice %filled into %rows[%i, 0] [1, %n] [1, 1] : tensor<1x?xf32> into tensor<?x?xf32>
    }
  }
  return %out : tensor<?x?xf32>
})";

TEST(Call, RunsNestedParallelLoops) {
  Module module = compile(kTable);
  ASSERT_TRUE(module) << lastError();
  int32_t before = aligned_rt_threads();
  for (int32_t threads : {1, 2, 3})
    for (int64_t m : {0, 1, 2, 7, 64})
      for (int64_t n : {1, 5, 63}) {
        aligned_rt_set_threads(threads);
        std::vector<float> a(m), b(n), expected;
        std::iota(a.begin(), a.end(), 1);
        std::iota(b.begin(), b.end(), 0);
        for (float x : a)
          for (float y : b)
            expected.push_back(x * y);
        aligned_value arguments[2] = {arrayOf(a, {m}), arrayOf(b, {n})}, result = {};
        ASSERT_EQ(aligned_module_call(module.get(), arguments, &result), 0) << lastError();
        const float *out = static_cast<float *>(result.array.data);
        EXPECT_EQ(std::vector<float>(out, out + m * n), expected) << m << " x " << n << " on " << threads << " threads";
        aligned_array_free(&result.array);
      }
  aligned_rt_set_threads(before);
}

/// Whichever thread it is on, and in whichever loop, a failed assertion is the call's error, and the next call is as good as any.
TEST(Call, AssertsInParallelLoops) {
  Module module = compile(R"(
func.func @roots(%a: tensor<3x?xf32>) -> tensor<3x?xf32> {
  %one = arith.constant 1 : index
  %zero = arith.constant 0.0 : f32
  %n = tensor.dim %a, %one : tensor<3x?xf32>
  %empty = tensor.empty(%n) : tensor<3x?xf32>
  %out = scf.forall (%i) in (3) shared_outs(%rows = %empty) -> tensor<3x?xf32> {
    %row = tensor.extract_slice %rows[%i, 0] [1, %n] [1, 1] : tensor<3x?xf32> to tensor<1x?xf32>
    %filled = scf.forall (%j) in (%n) shared_outs(%cells = %row) -> tensor<1x?xf32> {
      %x = tensor.extract %a[%i, %j] : tensor<3x?xf32>
      %real = arith.cmpf oge, %x, %zero : f32
      cf.assert %real, "expected no negative number"
      %root = math.sqrt %x : f32
      %cell = tensor.from_elements %root : tensor<1x1xf32>
      scf.forall.in_parallel {
        tensor.parallel_insert_slice %cell into %cells[0, %j] [1, 1] [1, 1] : tensor<1x1xf32> into tensor<1x?xf32>
      }
    }
    scf.forall.in_parallel {
      tensor.parallel_insert_slice %filled into %rows[%i, 0] [1, %n] [1, 1] : tensor<1x?xf32> into tensor<3x?xf32>
    }
  }
  return %out : tensor<3x?xf32>
})");
  ASSERT_TRUE(module) << lastError();
  int32_t before = aligned_rt_threads();
  for (int32_t threads : {1, 2, 3})
    for (int64_t wrong = 0; wrong < 3 * 40; wrong += 7) {
      aligned_rt_set_threads(threads);
      std::vector<float> a(3 * 40, 4);
      a[wrong] = -1;
      aligned_value argument = arrayOf(a, {3, 40}), result = {};
      ASSERT_NE(aligned_module_call(module.get(), &argument, &result), 0);
      EXPECT_EQ(lastError(), "assertion failed in the model: expected no negative number");
      a[wrong] = 4;
      ASSERT_EQ(aligned_module_call(module.get(), &argument, &result), 0) << lastError();
      const float *out = static_cast<float *>(result.array.data);
      EXPECT_EQ(std::vector<float>(out, out + 3 * 40), std::vector<float>(3 * 40, 2));
      aligned_array_free(&result.array);
    }
  aligned_rt_set_threads(before);
}

/// Functions over a cache [1, 2, ?, 32], of f32, and tokens for it.
class CacheCall : public testing::Test {
protected:
  static constexpr const char *kTypes = R"(
!tokens = tensor<1x2x?x32xf32>
!one = tensor<1x2x1x32xf32>
!key = tensor<1x2x?x32xf32, #aligned.planes<fixed<4, 4, 4, 4>, key>>
func.func private @push(%tokens: !tokens, %i: index, %cache: !key) -> !key {
  %one = tensor.extract_slice %tokens[0, 0, %i, 0] [1, 2, 1, 32] [1, 1, 1, 1] : !tokens to !one
  %new = aligned.append %one to %cache : !one to !key -> !key
  return %new : !key
}
func.func private @push_all(%tokens: !tokens, %cache: !key) -> !key {
  %zero = arith.constant 0 : index
  %step = arith.constant 1 : index
  %two = arith.constant 2 : index
  %n = tensor.dim %tokens, %two : !tokens
  %last = scf.for %i = %zero to %n step %step iter_args(%old = %cache) -> !key {
    %new = func.call @push(%tokens, %i, %old) : (!tokens, index, !key) -> !key
    scf.yield %new : !key
  }
  return %last : !key
}
)";

  ~CacheCall() override { aligned_cache_destroy(cache); }

  void SetUp() override {
    const aligned_format format = {ALIGNED_FORMAT_FIXED, ALIGNED_ROLE_KEY, ALIGNED_ELEMENT_F32, 4, {4, 4, 4, 4}};
    cache = aligned_cache_create(&format, 1, 2, 32, 0);
    ASSERT_NE(cache, nullptr);
    append(5, 0);
  }

  /// Tokens that all hold one number.
  static std::vector<float> tokensOf(int64_t count, float number) { return std::vector<float>(2 * count * 32, number); }
  void append(int64_t count, float number) {
    std::vector<float> tokens = tokensOf(count, number);
    aligned_value value = arrayOf(tokens, {1, 2, count, 32});
    ASSERT_EQ(aligned_cache_append(cache, value.array.data, count, value.array.strides), 0) << lastError();
  }
  /// The number of each token, as it came: what is stored of it is near.
  static std::vector<float> contentOf(const aligned_cache *cache) {
    std::vector<float> values(2 * cache->tokens * 32), numbers;
    EXPECT_EQ(aligned_cache_unpack(cache, 16, values.data()), 0) << lastError();
    for (int64_t t = 0; t < cache->tokens; ++t)
      numbers.push_back(std::round(values[t * 32] * 1024) / 1024);
    return numbers;
  }

  /// Calls the one public function with three tokens of 1, the cache, and whether to.
  void call(const std::string &function, bool whether, std::vector<aligned_value> &results) {
    Module module = compile(kTypes + function);
    ASSERT_TRUE(module) << lastError();
    std::vector<float> tokens = tokensOf(3, 1);
    aligned_value arguments[3] = {arrayOf(tokens, {1, 2, 3, 32})};
    arguments[1].cache = cache;
    arguments[2].array.data = &whether;
    results.resize(aligned_module_results(module.get()));
    ASSERT_EQ(aligned_module_call(module.get(), arguments, results.data()), 0) << lastError();
  }

  aligned_cache *cache = nullptr;
  const std::vector<float> five{0, 0, 0, 0, 0}, eight{0, 0, 0, 0, 0, 1, 1, 1};
};

/// Through a loop, a branch and two callees it is the object that was passed.
TEST_F(CacheCall, ReturnsTheCacheItself) {
  const char *function = R"(
func.func @f(%tokens: !tokens, %cache: !key, %whether: tensor<i1>) -> !key {
  %more = tensor.extract %whether[] : tensor<i1>
  %result = scf.if %more -> !key {
    %new = func.call @push_all(%tokens, %cache) : (!tokens, !key) -> !key
    scf.yield %new : !key
  } else {
    scf.yield %cache : !key
  }
  return %result : !key
})";
  for (bool whether : {false, true}) {
    std::vector<aligned_value> results;
    call(function, whether, results);
    ASSERT_EQ(results.size(), 1u);
    EXPECT_EQ(results[0].cache, cache);
    EXPECT_EQ(contentOf(cache), whether ? eight : five);
  }
}

TEST_F(CacheCall, LeavesTheOldOneWhereItIsAskedFor) {
  std::vector<aligned_value> results;
  call(R"(
func.func @f(%tokens: !tokens, %cache: !key, %whether: tensor<i1>) -> (!key, !key, !key) {
  %one = call @push_all(%tokens, %cache) : (!tokens, !key) -> !key
  %two = aligned.append %tokens to %cache : !tokens to !key -> !key
  return %cache, %one, %two : !key, !key, !key
})",
       true, results);
  ASSERT_EQ(results.size(), 3u);
  EXPECT_EQ(results[0].cache, cache);
  EXPECT_EQ(contentOf(cache), five);
  for (int i : {1, 2}) {
    EXPECT_NE(results[i].cache, cache);
    EXPECT_EQ(contentOf(results[i].cache), eight);
    aligned_cache_destroy(results[i].cache);
  }
  EXPECT_NE(results[1].cache, results[2].cache);
}

/// What is returned twice are two, whose tokens go their own ways.
TEST_F(CacheCall, ReturnsTwoWhereOneIsReturnedTwice) {
  std::vector<aligned_value> results;
  call(R"(
func.func @f(%tokens: !tokens, %cache: !key, %whether: tensor<i1>) -> (!key, !key, !key, !key) {
  %new = call @push_all(%tokens, %cache) : (!tokens, !key) -> !key
  %packed = aligned.pack %tokens : !tokens to !key
  return %new, %new, %packed, %packed : !key, !key, !key, !key
})",
       true, results);
  ASSERT_EQ(results.size(), 4u);
  EXPECT_EQ(results[0].cache, cache);
  append(1, 2);
  EXPECT_EQ(contentOf(results[1].cache), eight);
  EXPECT_NE(results[2].cache, results[3].cache);
  for (int i : {1, 2, 3})
    aligned_cache_destroy(results[i].cache);
}

/// What kernels would follow blindly. Nothing is appended then.
TEST(Call, RefusesCachesThatItCannotRead) {
  Module module = compile(kAttention, "policy=exact");
  ASSERT_TRUE(module) << lastError();
  aligned::CachePointer key(aligned_module_create_cache(module.get(), 1, 0), aligned_cache_destroy), value(aligned_module_create_cache(module.get(), 2, 0), aligned_cache_destroy);
  std::vector<float> query(2 * 32, 1), keys(2 * 5 * 32, 1), values(2 * 5 * 16, 1);
  for (auto [cache, data, channels] : {std::tuple(key.get(), &keys, 32), std::tuple(value.get(), &values, 16)}) {
    const aligned_value array = arrayOf(*data, {1, 2, 5, channels});
    ASSERT_EQ(aligned_cache_append(cache, array.array.data, 5, array.array.strides), 0) << lastError();
  }
  aligned_value arguments[3] = {arrayOf(query, {1, 2, 1, 32}), {}, {}}, result = {};
  auto refused = [&](aligned_cache *first, aligned_cache *second, const char *expected) {
    arguments[1].cache = first;
    arguments[2].cache = second;
    EXPECT_LT(aligned_module_call(module.get(), arguments, &result), 0);
    EXPECT_NE(lastError().find(expected), std::string::npos) << lastError();
  };
  refused(nullptr, value.get(), "expected a cache as argument 1, got none");
  refused(value.get(), key.get(), "expected a cache of shape [1, 2, ?, 32] as argument 1, got [1, 2, 5, 16]");
  aligned_cache elsewhere = *value;
  elsewhere.location = ALIGNED_LOCATION_CUDA;
  refused(key.get(), &elsewhere, "expected a cache on the host as argument 2, got one in location 1");
  ASSERT_EQ(aligned_cache_truncate(value.get(), 4), 0);
  refused(key.get(), value.get(), "expected key and value to agree in tokens");
  EXPECT_EQ(key->tokens, 5);
  EXPECT_EQ(value->tokens, 4);
  ASSERT_EQ(aligned_cache_truncate(key.get(), 4), 0);
  ASSERT_EQ(aligned_module_call(module.get(), arguments, &result), 0) << lastError(); // and goes on
  EXPECT_NEAR(static_cast<float *>(result.array.data)[0], 1, 1e-3);
  aligned_array_free(&result.array);
}

/// Who makes a cache and does not return it destroys it, which leak checkers see; what is read of the old one is as it was, whether or not the other is the same.
TEST_F(CacheCall, KeepsNothing) {
  const char *function = R"(
func.func private @either(%tokens: !tokens, %cache: !key, %more: i1) -> !key {
  %result = scf.if %more -> !key {
    %packed = aligned.pack %tokens : !tokens to !key
    scf.yield %packed : !key
  } else {
    scf.yield %cache : !key
  }
  return %result : !key
}
func.func @f(%tokens: !tokens, %cache: !key, %whether: tensor<i1>) -> (!tokens, !tokens, tensor<2xi64>) {
  %more = tensor.extract %whether[] : tensor<i1>
  %two = arith.constant 2 : index
  %either = func.call @either(%tokens, %cache, %more) : (!tokens, !key, i1) -> !key
  %grown = func.call @push_all(%tokens, %either) : (!tokens, !key) -> !key
  %other = func.call @push_all(%tokens, %cache) : (!tokens, !key) -> !key
  %first = aligned.unpack %grown : !key to !tokens
  %old = aligned.unpack %cache : !key to !tokens
  %n = tensor.dim %grown, %two : !key
  %m = tensor.dim %cache, %two : !key
  %n64 = arith.index_cast %n : index to i64
  %m64 = arith.index_cast %m : index to i64
  %sizes = tensor.from_elements %n64, %m64 : tensor<2xi64>
  return %first, %old, %sizes : !tokens, !tokens, tensor<2xi64>
})";
  for (bool whether : {false, true}) {
    std::vector<aligned_value> results;
    call(function, whether, results);
    ASSERT_EQ(results.size(), 3u);
    EXPECT_EQ(contentOf(cache), five);
    const int64_t *sizes = static_cast<int64_t *>(results[2].array.data);
    EXPECT_EQ(sizes[0], whether ? 6 : 8);
    EXPECT_EQ(sizes[1], 5);
    const float *first = static_cast<float *>(results[0].array.data), *old = static_cast<float *>(results[1].array.data);
    EXPECT_NEAR(first[0], whether ? 1 : 0, 1e-3);
    EXPECT_NEAR(first[32 * (sizes[0] - 1)], 1, 1e-3);
    EXPECT_EQ(results[1].array.shape[2], 5);
    EXPECT_NEAR(old[0], 0, 1e-3);
    for (aligned_value &result : results)
      aligned_array_free(&result.array);
  }
}

struct Run {
  const char *options;
  double bound; ///< of errors relative to the usual row of V
};
class Attention : public testing::TestWithParam<Run> {};

/// What a module makes of dense types, for each policy and storage that options name.
TEST_P(Attention, MatchesTheOracleAtEveryLength) {
  aligned::Spec spec{32, 16, 1, 1, 2};
  spec.element = "f32";
  spec.keys = spec.values = "";
  spec.options = GetParam().options;
  aligned::Kernel kernel(spec);
  ASSERT_TRUE(kernel) << lastError();
  for (int64_t tokens : {0, 1, 63, 64, 65, 200}) {
    SCOPED_TRACE(std::to_string(tokens) + " tokens");
    std::vector<aligned::HeadInputs> heads = aligned::structuredHeads(spec, tokens);
    aligned::Outcome outcome = kernel.run(heads);
    ASSERT_FALSE(outcome.failed);
    for (int64_t head = 0; head < 2; ++head)
      aligned::expectNear(heads[head], outcome.out[head], GetParam().bound);
  }
}

INSTANTIATE_TEST_SUITE_P(Policies, Attention,
                         testing::Values(Run{"policy=exact", 1e-4}, Run{"policy=tight", 1e-3}, Run{"policy=exact isa=portable", 1e-4}, Run{"policy=alignedkv", 0.2},
                                         Run{"policy=exact format=dense", 1e-5}, Run{"target=reference", 1e-6}),
                         [](const testing::TestParamInfo<Run> &info) { return aligned::identifier(info.param.options); });

} // namespace
