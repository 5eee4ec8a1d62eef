// Plane encodings, policies and masks: text forms, verification, presets.
#include "aligned/Dialect/Aligned/IR/Aligned.h"

#include "mlir/IR/Diagnostics.h"
#include "mlir/IR/DialectImplementation.h"
#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/StringExtras.h"
#include "llvm/ADT/StringSwitch.h"
#include "llvm/ADT/TypeSwitch.h"
#include "llvm/Support/Format.h"
#include "llvm/Support/InterleavedRange.h"

#include <cmath>

using namespace mlir;
using namespace aligned;

static constexpr int64_t kStorageBits = 16, kMaxPlanes = 4;
static constexpr int64_t kMaxTokens = int64_t(1) << 40; // far above any cache, and far below where sums of it overflow

//===----------------------------------------------------------------------===//
// Text forms
//===----------------------------------------------------------------------===//

/// fixed<4, 4, 4, 4>
static ParseResult parseFormat(AsmParser &parser, FormatKind &kind, SmallVector<int64_t> &widths) {
  StringRef keyword;
  SMLoc loc = parser.getCurrentLocation();
  if (parser.parseKeyword(&keyword))
    return failure();
  std::optional<FormatKind> parsed = symbolizeFormatKind(keyword);
  if (!parsed)
    return parser.emitError(loc) << "expected 'fixed' or 'float', got '" << keyword << "'";
  kind = *parsed;
  return parser.parseCommaSeparatedList(AsmParser::Delimiter::LessGreater,
                                        [&] { return parser.parseInteger(widths.emplace_back()); });
}

static void printFormat(AsmPrinter &printer, FormatKind kind, ArrayRef<int64_t> widths) {
  printer << stringifyFormatKind(kind) << "<" << llvm::interleaved(widths) << ">";
}

/// , resident = 2        left out when every plane is
static ParseResult parseResident(AsmParser &parser, int64_t &resident, ArrayRef<int64_t> widths) {
  resident = widths.size();
  if (failed(parser.parseOptionalComma()))
    return success();
  return failure(parser.parseKeyword("resident") || parser.parseEqual() || parser.parseInteger(resident));
}

static void printResident(AsmPrinter &printer, int64_t resident, ArrayRef<int64_t> widths) {
  if (resident != static_cast<int64_t>(widths.size()))
    printer << ", resident = " << resident;
}

namespace aligned {

static FailureOr<FloatAttr> parseTolerance(AsmParser &parser) {
  FloatAttr tolerance;
  if (parser.parseAttribute(tolerance, parser.getBuilder().getF64Type()))
    return failure();
  return tolerance;
}

/// [1024: 8, 4096: 4]
static FailureOr<SmallVector<AgeBits>> parseAges(AsmParser &parser) {
  SmallVector<AgeBits> ages;
  auto parseStep = [&]() -> ParseResult {
    AgeBits &step = ages.emplace_back();
    return failure(parser.parseInteger(step.age) || parser.parseColon() || parser.parseInteger(step.bits));
  };
  if (parser.parseCommaSeparatedList(AsmParser::Delimiter::Square, parseStep))
    return failure();
  return ages;
}

static void printAges(AsmPrinter &printer, ArrayRef<AgeBits> ages) {
  printer << "[";
  llvm::interleaveComma(ages, printer, [&](const AgeBits &step) { printer << step.age << ": " << step.bits; });
  printer << "]";
}

static AsmPrinter &operator<<(AsmPrinter &printer, const BitRange &bits) { return printer << bits.least << " to " << bits.most; }

} // namespace aligned

template <>
struct mlir::FieldParser<BitRange> {
  static FailureOr<BitRange> parse(AsmParser &parser) {
    BitRange bits;
    if (parser.parseInteger(bits.least) || parser.parseKeyword("to") || parser.parseInteger(bits.most))
      return failure();
    return bits;
  }
};

#include "aligned/Dialect/Aligned/IR/AlignedEnums.cpp.inc"
#define GET_ATTRDEF_CLASSES
#include "aligned/Dialect/Aligned/IR/AlignedAttrs.cpp.inc"

void AlignedDialect::registerAttributes() {
  addAttributes<
#define GET_ATTRDEF_LIST
#include "aligned/Dialect/Aligned/IR/AlignedAttrs.cpp.inc"
      >();
}

std::string aligned::decimal(double number) {
  std::string text;
  llvm::raw_string_ostream(text) << llvm::format("%g", number);
  return text;
}

std::string aligned::alternatives(ArrayRef<StringRef> names) {
  return ("'" + llvm::join(names.drop_back(), "', '") + "' or '" + names.back() + "'").str();
}

//===----------------------------------------------------------------------===//
// Ranges
//===----------------------------------------------------------------------===//

LogicalResult RangeAttr::verify(function_ref<InFlightDiagnostic()> emitError, APFloat lowerEnd, APFloat upperEnd, APFloat magnitude, bool, bool) { // P6
  double lower = lowerEnd.convertToDouble(), upper = upperEnd.convertToDouble(), nonzero = magnitude.convertToDouble();
  if (!std::isfinite(lower) || !std::isfinite(upper))
    return emitError() << "expected finite ends of a range, got [" << decimal(lower) << ", " << decimal(upper) << "]";
  if (lower > upper)
    return emitError() << "expected a range that is not empty, got [" << decimal(lower) << ", " << decimal(upper) << "]";
  if (!(nonzero >= 0 && nonzero <= std::max(std::fabs(lower), std::fabs(upper))))
    return emitError() << "expected a least magnitude from 0 to that of the larger end of [" << decimal(lower) << ", " << decimal(upper) << "], got " << decimal(nonzero);
  return success();
}

Attribute RangeAttr::parse(AsmParser &parser, Type) {
  double lower = 0, upper = 0, nonzero = 0;
  bool infinite = false, nan = false;
  SMLoc place = parser.getCurrentLocation();
  if (parser.parseLess() || parser.parseLSquare() || parser.parseFloat(lower) || parser.parseComma() || parser.parseFloat(upper) || parser.parseRSquare())
    return {};
  while (succeeded(parser.parseOptionalComma())) {
    if (succeeded(parser.parseOptionalKeyword("nonzero"))) {
      if (parser.parseEqual() || parser.parseFloat(nonzero))
        return {};
    } else if (succeeded(parser.parseOptionalKeyword("inf"))) {
      infinite = true;
    } else if (succeeded(parser.parseOptionalKeyword("nan"))) {
      nan = true;
    } else {
      parser.emitError(parser.getCurrentLocation(), "expected 'nonzero = ...', 'inf' or 'nan'");
      return {};
    }
  }
  if (parser.parseGreater())
    return {};
  return getChecked([&] { return parser.emitError(place); }, parser.getContext(), APFloat(lower), APFloat(upper), APFloat(nonzero), infinite, nan);
}

void RangeAttr::print(AsmPrinter &printer) const {
  printer << "<[";
  printer.printFloat(getLower());
  printer << ", ";
  printer.printFloat(getUpper());
  printer << "]";
  if (!getNonzero().isZero()) {
    printer << ", nonzero = ";
    printer.printFloat(getNonzero());
  }
  printer << (getInfinite() ? ", inf" : "") << (getNan() ? ", nan" : "") << ">";
}

//===----------------------------------------------------------------------===//
// Plane encodings
//===----------------------------------------------------------------------===//

LogicalResult PlanesAttr::verify(function_ref<InFlightDiagnostic()> emitError, FormatKind kind, ArrayRef<int64_t> widths,
                                CacheRole role, int64_t resident) {
  if (widths.empty() || widths.size() > kMaxPlanes)
    return emitError() << "expected 1 to " << kMaxPlanes << " planes, got " << widths.size();
  int64_t sum = 0;
  for (int64_t width : widths) {
    if (width <= 0 || width > kStorageBits || width % 4)
      return emitError() << "expected plane widths that are multiples of 4, got " << width;
    if (kind == FormatKind::Fixed && width > 8)
      return emitError() << "expected planes of 4 or 8 bits in a fixed format, got " << width;
    sum += width;
  }
  if (sum != kStorageBits)
    return emitError() << "expected plane widths that sum to " << kStorageBits << ", got " << sum;
  if (kind == FormatKind::Float && widths.front() < 8)
    return emitError() << "expected a first plane of at least 8 bits, which hold sign and exponent of a half, got "
                       << widths.front();
  if (resident < 1 || resident > static_cast<int64_t>(widths.size()))
    return emitError() << "expected 1 to " << widths.size() << " resident planes, got " << resident;
  return success();
}

LogicalResult PlanesAttr::verifyEncoding(ArrayRef<int64_t> shape, Type elementType,
                                        function_ref<InFlightDiagnostic()> emitError) const {
  if (shape.size() != 4)
    return emitError() << "expected a packed tensor of rank 4 [batch, kv_heads, tokens, head_dim], got rank " << shape.size();
  if (ShapedType::isDynamic(shape[0]) || ShapedType::isDynamic(shape[1]))
    return emitError() << "expected static batch and kv_heads in a packed tensor";
  if (!isSupportedHeadDim(shape[3]))
    return emitError() << "expected a static head_dim that is a multiple of " << kHeadDimMultiple << ", at most " << kMaxHeadDim
                       << ", in a packed tensor, got " << (ShapedType::isDynamic(shape[3]) ? "?" : std::to_string(shape[3]));
  if (!supports(elementType))
    return emitError() << "expected " << (supports(BFloat16Type::get(getContext())) ? "f16, bf16 or f32" : "f16 or f32")
                       << " elements in a tensor packed as " << stringifyFormatKind(getKind()) << "<"
                       << llvm::interleaved(getWidths()) << ">, got " << elementType;
  return success();
}

PlanesAttr PlanesAttr::withRole(CacheRole role) const {
  return get(getContext(), getKind(), getWidths(), role, getResident());
}

int64_t PlanesAttr::getFirstLayer(int64_t plane) const {
  int64_t bits = 0;
  for (int64_t width : getWidths().take_front(plane))
    bits += width;
  return bits / 4;
}

bool PlanesAttr::supports(Type elementType) const {
  if (elementType.isBF16()) // its sign and exponent reach one bit into the second byte
    return getKind() == FormatKind::Fixed || getWidths()[0] >= 12;
  return elementType.isF16() || elementType.isF32();
}

PlanesAttr aligned::getPlanes(Type type) {
  if (auto tensor = dyn_cast<RankedTensorType>(type))
    return dyn_cast_or_null<PlanesAttr>(tensor.getEncoding());
  if (auto buffer = dyn_cast<MemRefType>(type))
    return dyn_cast_or_null<PlanesAttr>(buffer.getMemorySpace());
  return {};
}

bool aligned::takeLess(TypeRange tensors, uint64_t bytes) {
  uint64_t sum = 0;
  for (Type type : tensors) {
    auto tensor = cast<RankedTensorType>(type);
    if (!tensor.hasStaticShape())
      return false;
    uint64_t size = tensor.getElementTypeBitWidth() / 8;
    for (int64_t extent : tensor.getShape())
      size = llvm::SaturatingMultiply<uint64_t>(size, extent);
    sum = llvm::SaturatingAdd(sum, size);
  }
  return sum < bytes;
}

bool aligned::isSupportedHeadDim(int64_t headDim) {
  return headDim > 0 && headDim <= kMaxHeadDim && headDim % kHeadDimMultiple == 0;
}

PlanesAttr aligned::parsePlaneFormat(StringRef text, CacheRole role, MLIRContext *context,
                                    function_ref<InFlightDiagnostic()> emitError) {
  auto malformed = [&] {
    emitError() << "expected a plane format such as 'fixed<4,4,8>' or 'float<8,4,4>', got '" << text << "'";
    return PlanesAttr();
  };
  auto [name, rest] = text.trim().split('<');
  std::optional<FormatKind> kind = symbolizeFormatKind(name.trim());
  if (!kind || !rest.consume_back(">"))
    return malformed();
  SmallVector<StringRef> pieces;
  rest.split(pieces, ',');
  SmallVector<int64_t> widths;
  for (StringRef piece : pieces)
    if (piece.trim().getAsInteger(10, widths.emplace_back()))
      return malformed();
  return PlanesAttr::getChecked(emitError, context, *kind, widths, role, static_cast<int64_t>(widths.size()));
}

//===----------------------------------------------------------------------===//
// Policies
//===----------------------------------------------------------------------===//

static LogicalResult verifyTolerance(function_ref<InFlightDiagnostic()> emitError, FloatAttr tolerance) {
  if (!tolerance.getType().isF64())
    return emitError() << "expected a tolerance of type f64, got " << tolerance.getType();
  double value = tolerance.getValueAsDouble();
  if (!(value > 0.0 && value < 1.0)) // also refuses NaN
    return emitError() << "expected a tolerance above 0 and below 1, got " << decimal(value);
  return success();
}

static LogicalResult verifyBits(function_ref<InFlightDiagnostic()> emitError, int64_t bits) {
  if (bits < 0 || bits > kStorageBits || bits % 4)
    return emitError() << "expected bits that are a multiple of 4 from 0 to " << kStorageBits << ", got " << bits;
  return success();
}

LogicalResult LimitsAttr::verify(function_ref<InFlightDiagnostic()> emitError, FloatAttr tolerance, BitRange bits, int64_t newest, int64_t sinks,
                                 ArrayRef<AgeBits> ages) { // P7
  if (tolerance && failed(verifyTolerance(emitError, tolerance)))
    return failure();
  if (failed(verifyBits(emitError, bits.least)) || failed(verifyBits(emitError, bits.most)))
    return failure();
  if (bits.least > bits.most)
    return emitError() << "expected the least bits not to exceed the most, got " << bits.least << " to " << bits.most;
  for (auto [name, count] : {std::pair("newest", newest), std::pair("sinks", sinks)})
    if (count < 0 || count > kMaxTokens)
      return emitError() << "expected 0 to " << kMaxTokens << " " << name << " tokens, got " << count;
  for (size_t i = 0; i < ages.size(); ++i) {
    if (failed(verifyBits(emitError, ages[i].bits)))
      return failure();
    if (int64_t before = i ? ages[i - 1].age : 0; ages[i].age <= before)
      return emitError() << "expected ages that rise from above 0, got " << ages[i].age << " behind " << before;
    if (i && ages[i].bits >= ages[i - 1].bits)
      return emitError() << "expected bits that fall with age, got " << ages[i].bits << " behind " << ages[i - 1].bits;
  }
  return success();
}

LogicalResult PolicyAttr::verify(function_ref<InFlightDiagnostic()> emitError, PolicyKind kind, FloatAttr tolerance, LimitsAttr key, LimitsAttr value) {
  if (kind == PolicyKind::Budget) {
    if (!tolerance)
      return emitError() << "expected a tolerance with 'budget'";
    return verifyTolerance(emitError, tolerance);
  }
  if (tolerance || (key && key.getTolerance()) || (value && value.getTolerance()))
    return emitError() << "expected a tolerance only with 'budget', got one with '" << stringifyPolicyKind(kind) << "'";
  if (kind == PolicyKind::Exact && (key || value)) // P7
    return emitError() << "expected no limits with 'exact', got some of " << (key ? "key" : "value");
  return success();
}

double PolicyAttr::getTolerance(CacheRole side) const {
  if (LimitsAttr limits = getLimits(side); limits && limits.getTolerance())
    return limits.getTolerance().getValueAsDouble();
  return getTolerance() ? getTolerance().getValueAsDouble() : 0.0;
}

double aligned::leastTolerance(ArrayRef<PolicyAttr> policies) {
  double least = 1;
  for (PolicyAttr policy : policies)
    for (CacheRole side : {CacheRole::Key, CacheRole::Value})
      least = std::min(least, policy.getTolerance(side));
  return least;
}

double aligned::presetTolerance(StringRef policy) {
  return llvm::StringSwitch<double>(policy).Case("tight", 0x1p-12).Case("balanced", 0x1p-9).Case("fast", 0x1p-7).Case("draft", 0x1p-6).Default(0.0);
}

PolicyAttr aligned::parsePolicy(StringRef name, double tolerance, MLIRContext *context,
                                function_ref<InFlightDiagnostic()> emitError) {
  const double preset = presetTolerance(name);
  std::optional<PolicyKind> kind = preset ? PolicyKind::Budget : symbolizePolicyKind(name);
  if (!kind) {
    emitError() << "expected policy 'exact', 'alignedkv', 'tight', 'balanced', 'fast', 'draft' or 'budget', got '" << name << "'";
    return {};
  }
  if (preset && tolerance != 0.0) {
    emitError() << "expected a tolerance only with policy 'budget', got one with '" << name << "', which stands for "
                << decimal(preset);
    return {};
  }
  if (*kind == PolicyKind::Budget && !preset && tolerance == 0.0) {
    emitError() << "expected a tolerance above 0 and below 1 with policy 'budget', got none or 0";
    return {};
  }
  FloatAttr value;
  if (*kind == PolicyKind::Budget || tolerance != 0.0)
    value = FloatAttr::get(Float64Type::get(context), preset ? preset : tolerance);
  return PolicyAttr::getChecked(emitError, context, *kind, value, LimitsAttr(), LimitsAttr());
}

//===----------------------------------------------------------------------===//
// Masks
//===----------------------------------------------------------------------===//

LogicalResult MaskAttr::verify(function_ref<InFlightDiagnostic()> emitError, bool causal, int64_t window, int64_t sinks) { // A11
  if (!causal && !window && !sinks)
    return emitError() << "expected a mask that is causal or has a window, got neither";
  if (!ShapedType::isDynamic(window) && (window < 0 || window > kMaxTokens))
    return emitError() << "expected a window of 1 to " << kMaxTokens << " tokens, got " << window;
  if (!ShapedType::isDynamic(sinks) && (sinks < 0 || sinks > kMaxTokens))
    return emitError() << "expected 0 to " << kMaxTokens << " sinks, got " << sinks;
  if (sinks && !window)
    return emitError() << "expected sinks only with a window, got " << (ShapedType::isDynamic(sinks) ? "some" : std::to_string(sinks)) << " sinks and no window";
  return success();
}

MaskAttr MaskAttr::parseParts(AsmParser &parser, function_ref<ParseResult(StringRef, int64_t &)> parseNumber) {
  bool causal = false;
  std::optional<int64_t> window, sinks;
  SMLoc place = parser.getCurrentLocation();
  auto parsePart = [&]() -> ParseResult {
    SMLoc loc = parser.getCurrentLocation();
    StringRef name;
    if (parser.parseKeyword(&name))
      return failure();
    auto count = [&](std::optional<int64_t> &number) -> ParseResult {
      if (number)
        return parser.emitError(loc) << "expected each part of a mask once, got '" << name << "' again";
      return failure(parser.parseEqual() || parseNumber(name, number.emplace()));
    };
    if (name == "window")
      return count(window);
    if (name == "sinks")
      return count(sinks);
    if (name != "causal")
      return parser.emitError(loc) << "expected 'causal', 'window = ...' or 'sinks = ...', got '" << name << "'";
    if (causal)
      return parser.emitError(loc) << "expected each part of a mask once, got '" << name << "' again";
    causal = true;
    return success();
  };
  if (parser.parseCommaSeparatedList(AsmParser::Delimiter::LessGreater, parsePart))
    return {};
  if (window == 0) { // which the attribute keeps for none
    parser.emitError(place) << "expected a window of 1 to " << kMaxTokens << " tokens, got 0";
    return {};
  }
  return getChecked([&] { return parser.emitError(place); }, parser.getContext(), causal, window.value_or(0), sinks.value_or(0));
}

void MaskAttr::printParts(AsmPrinter &printer, function_ref<void(StringRef, int64_t)> printNumber) const {
  printer << "<" << (getCausal() ? "causal" : "");
  bool isFirst = !getCausal();
  for (auto [part, number] : {std::pair("window", getWindow()), std::pair("sinks", getSinks())}) {
    if (!number)
      continue;
    printer << (std::exchange(isFirst, false) ? "" : ", ") << part << " = ";
    printNumber(part, number);
  }
  printer << ">";
}

Attribute MaskAttr::parse(AsmParser &parser, Type) {
  return parseParts(parser, [&](StringRef, int64_t &number) -> ParseResult {
    if (failed(parser.parseOptionalQuestion()))
      return parser.parseInteger(number);
    number = ShapedType::kDynamic;
    return success();
  });
}

void MaskAttr::print(AsmPrinter &printer) const {
  printParts(printer, [&](StringRef, int64_t number) {
    if (ShapedType::isDynamic(number))
      printer << "?";
    else
      printer << number;
  });
}
