// Formats and policies as users name them on a command line.
#include "aligned/Dialect/Aligned/IR/Aligned.h"

#include "mlir/IR/Diagnostics.h"
#include "mlir/IR/MLIRContext.h"

#include <gtest/gtest.h>

#include <limits>

using namespace aligned;
using namespace mlir;

namespace {

/// A context with the dialect that keeps what was reported.
struct Options : testing::Test {
  Options()
      : handler(&context, [this](Diagnostic &diagnostic) {
          report += diagnostic.str();
          return success();
        }) {
    context.loadDialect<AlignedDialect>();
  }

  PlanesAttr format(StringRef text, CacheRole role = CacheRole::Key) {
    report.clear();
    return parsePlaneFormat(text, role, &context, [&] { return emitError(UnknownLoc::get(&context)); });
  }
  PolicyAttr policy(StringRef name, double tolerance = 0.0) {
    report.clear();
    return parsePolicy(name, tolerance, &context, [&] { return emitError(UnknownLoc::get(&context)); });
  }
  void expectReport(StringRef text) { EXPECT_NE(report.find(text.str()), std::string::npos) << "reported: " << report; }

  MLIRContext context;
  std::string report;
  ScopedDiagnosticHandler handler;
};

TEST_F(Options, formatsAreParsed) {
  PlanesAttr fixed = format("fixed<4,4,4,4>");
  ASSERT_TRUE(fixed) << report;
  EXPECT_EQ(fixed, PlanesAttr::get(&context, FormatKind::Fixed, {4, 4, 4, 4}, CacheRole::Key));
  EXPECT_EQ(fixed.getResident(), 4);
  EXPECT_EQ(format(" float < 12 , 4 > ", CacheRole::Value), PlanesAttr::get(&context, FormatKind::Float, {12, 4}, CacheRole::Value)) << report;
  EXPECT_TRUE(format("fixed<8,8>")) << report;
  EXPECT_EQ(report, "");
}

TEST_F(Options, malformedFormatsAreReported) {
  for (const char *text : {"", "fixed", "fixed<", "fixed<4,4,4,4", "fixed4,4,4,4>", "posit<16>", "fixed<4,,8>", "fixed<four,12>", "fixed<>", "fixed<4,4,4,4>>",
                           "fixed<99999999999999999999>"}) {
    EXPECT_FALSE(format(text)) << text;
    expectReport("expected a plane format such as 'fixed<4,4,8>' or 'float<8,4,4>', got '" + std::string(text) + "'");
  }
}

TEST_F(Options, formatsThatNoPlanesCanHaveAreReported) {
  EXPECT_FALSE(format("fixed<4,4>"));
  expectReport("expected plane widths that sum to 16, got 8");
  EXPECT_FALSE(format("fixed<5,11>"));
  expectReport("expected plane widths that are multiples of 4, got 5");
  EXPECT_FALSE(format("fixed<-4,20>"));
  expectReport("expected plane widths that are multiples of 4, got -4");
  EXPECT_FALSE(format("fixed<16>"));
  expectReport("expected planes of 4 or 8 bits in a fixed format, got 16");
  EXPECT_FALSE(format("float<4,12>"));
  expectReport("expected a first plane of at least 8 bits");
}

TEST_F(Options, layersCountNibblesInFrontOfAPlane) {
  PlanesAttr split = format("float<8,4,4>");
  EXPECT_EQ(split.getFirstLayer(0), 0);
  EXPECT_EQ(split.getFirstLayer(1), 2);
  EXPECT_EQ(split.getFirstLayer(2), 3);
}

TEST_F(Options, theOtherRoleKeepsFormatAndResidency) {
  auto key = PlanesAttr::get(&context, FormatKind::Float, {8, 4, 4}, CacheRole::Key, 2);
  EXPECT_EQ(key.withRole(CacheRole::Value), PlanesAttr::get(&context, FormatKind::Float, {8, 4, 4}, CacheRole::Value, 2));
}

TEST_F(Options, elementTypesThatAFormatCanHold) {
  Type f16 = Float16Type::get(&context), bf16 = BFloat16Type::get(&context), f32 = Float32Type::get(&context), f64 = Float64Type::get(&context);
  for (const char *text : {"fixed<4,4,4,4>", "fixed<4,4,8>", "float<12,4>", "float<16>"}) {
    ASSERT_TRUE(format(text)) << report;
    for (Type type : {f16, bf16, f32})
      EXPECT_TRUE(format(text).supports(type)) << text;
  }
  EXPECT_FALSE(format("float<8,4,4>").supports(bf16));
  EXPECT_TRUE(format("float<8,4,4>").supports(f16));
  EXPECT_FALSE(format("fixed<4,4,4,4>").supports(f64));
}

TEST_F(Options, policiesAreParsed) {
  EXPECT_EQ(policy("exact").getKind(), PolicyKind::Exact);
  EXPECT_FALSE(policy("exact").getTolerance());
  EXPECT_EQ(policy("alignedkv").getKind(), PolicyKind::AlignedKV);
  EXPECT_EQ(policy("budget", 0.1).getTolerance().getValueAsDouble(), 0.1);
  for (auto [name, tolerance] : {std::pair("tight", 0x1p-12), {"balanced", 0x1p-9}, {"fast", 0x1p-7}, {"draft", 0x1p-6}}) {
    EXPECT_EQ(policy(name).getTolerance().getValueAsDouble(), tolerance);
    EXPECT_EQ(policy(name), policy("budget", tolerance));
  }
  EXPECT_EQ(report, "");
}

TEST_F(Options, policiesThatMeanNothingAreReported) {
  EXPECT_FALSE(policy("Tight"));
  expectReport("expected policy 'exact', 'alignedkv', 'tight', 'balanced', 'fast', 'draft' or 'budget', got 'Tight'");
  EXPECT_FALSE(policy("tight", 0.25));
  expectReport("expected a tolerance only with policy 'budget', got one with 'tight', which stands for 0.000244141");
  EXPECT_FALSE(policy("exact", 0.25));
  expectReport("expected a tolerance only with 'budget', got one with 'exact'");
  EXPECT_FALSE(policy("budget", 0.0)); // what a tolerance that nobody gave is
  expectReport("expected a tolerance above 0 and below 1 with policy 'budget', got none or 0");
  for (double tolerance : {1.0, -0.5, std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN()}) {
    EXPECT_FALSE(policy("budget", tolerance)) << tolerance;
    expectReport("expected a tolerance above 0 and below 1, got");
  }
}

TEST(HeadDim, multiplesOf16UpTo256) {
  for (int64_t good : {16, 64, 80, 128, 256})
    EXPECT_TRUE(isSupportedHeadDim(good)) << good;
  for (int64_t bad : {int64_t(-16), int64_t(0), int64_t(8), int64_t(20), int64_t(272), ShapedType::kDynamic})
    EXPECT_FALSE(isSupportedHeadDim(bad)) << bad;
}

} // namespace
