// C++ face of the dialect: attributes, ops, and the one place that knows what the kernels can hold.
#ifndef ALIGNED_DIALECT_ALIGNED_IR_ALIGNED_H
#define ALIGNED_DIALECT_ALIGNED_IR_ALIGNED_H

#include "aligned/Storage/Scale.h"

#include "mlir/Bytecode/BytecodeOpInterface.h"
#include "mlir/IR/Builders.h"
#include "mlir/IR/BuiltinAttributes.h"
#include "mlir/IR/BuiltinTypes.h"
#include "mlir/IR/Dialect.h"
#include "mlir/IR/OpDefinition.h"
#include "mlir/IR/OpImplementation.h"
#include "mlir/IR/TensorEncoding.h"
#include "mlir/Interfaces/DestinationStyleOpInterface.h"
#include "mlir/Interfaces/InferTypeOpInterface.h"
#include "mlir/Interfaces/SideEffectInterfaces.h"
#include "mlir/Interfaces/TilingInterface.h"
#include "mlir/Interfaces/ViewLikeInterface.h"

#include "aligned/Dialect/Aligned/IR/AlignedDialect.h.inc"
#include "aligned/Dialect/Aligned/IR/AlignedEnums.h.inc"

namespace aligned {

/// Attributes of a function's arguments and results (P6; S2).
constexpr llvm::StringLiteral kRangeName = "aligned.range", kToleranceName = "aligned.tolerance", kKeyOffsetName = "aligned.key_offset";
/// Of a module: tokens up to which some attention of it reads dense copies of caches that hold some.
constexpr llvm::StringLiteral kDenseUpToName = "aligned.dense_up_to";

/// A number in a message.
std::string decimal(double number);
/// 'a', 'b' or 'c': names in a message.
std::string alternatives(llvm::ArrayRef<llvm::StringRef> names);

/// `4 to 12`: the least and the most bits that may be read of a value.
struct BitRange {
  int64_t least = 0, most = 16;
  bool operator==(const BitRange &other) const { return least == other.least && most == other.most; }
};
inline llvm::hash_code hash_value(const BitRange &bits) { return llvm::hash_combine(bits.least, bits.most); }

/// `1024: 8`: the most bits that may be read from an age on.
struct AgeBits {
  int64_t age, bits;
  bool operator==(const AgeBits &other) const { return age == other.age && bits == other.bits; }
};
inline llvm::hash_code hash_value(const AgeBits &step) { return llvm::hash_combine(step.age, step.bits); }

} // namespace aligned

#define GET_ATTRDEF_CLASSES
#include "aligned/Dialect/Aligned/IR/AlignedAttrs.h.inc"
#define GET_OP_CLASSES
#include "aligned/Dialect/Aligned/IR/AlignedOps.h.inc"

namespace aligned {

/// What a head may look like so that plane storage and kernels can hold it.
constexpr int64_t kHeadDimMultiple = 16, kMaxHeadDim = 256;
/// Query rows (query heads of the group times queries) that one kv head may serve in decode attention.
constexpr int64_t kMaxQueryRows = 32;
/// What a softcap may be (A12): of these f32 holds the inverse, too.
constexpr double kLeastSoftcap = 1e-30, kLargestSoftcap = 1e30;
/// Tokens of a tile.
constexpr int64_t kTile = storage::kTile;

/// Numbers of a row's certificate while it is computed (P4).
constexpr int64_t kCertificateNumbers = 8, kCertificateVariance = 4, kCertificateLargest = 5, kCertificateScoreVariance = 7;

/// Of the stages of a decode step over fixed planes: digits of a query row's integers, under a tolerance and exactly; facts that are known of each query row; lanes of a tile's
/// maxima; tiles of a split.
constexpr int64_t kQueryDigits = 2, kExactQueryDigits = 3, kStepFacts = 8, kTopLanes = 16, kSplitTiles = 32;

/// The plane encoding of a cache, which a tensor has as its encoding and a buffer as its memory space; null for what is dense.
PlanesAttr getPlanes(mlir::Type type);
/// Of all kv heads and sides the one that reads the most; 0 where some have none.
double leastTolerance(llvm::ArrayRef<PolicyAttr> policies);

/// Whether dense tensors are of static shapes and take less than so many bytes together.
bool takeLess(mlir::TypeRange tensors, uint64_t bytes);

/// Whether a head dimension can be stored in planes: static, a multiple of 16, at most 256.
bool isSupportedHeadDim(int64_t headDim);

/// Parses `fixed<4,4,4,4>`, `float<8,4,4>`, as written in options; null with a diagnostic at `emitError` otherwise.
PlanesAttr parsePlaneFormat(llvm::StringRef text, CacheRole role, mlir::MLIRContext *context,
                           llvm::function_ref<mlir::InFlightDiagnostic()> emitError);

/// The tolerance that a preset's name stands for, such as 2^-12 of tight; 0 of all else.
double presetTolerance(llvm::StringRef policy);

/// Policies by name: exact, alignedkv, tight (2^-12), balanced (2^-9), fast (2^-7), draft (2^-6), or budget with a tolerance of its own.
/// `tolerance` is 0 where none was given. Null with a diagnostic for an unknown name or a tolerance that does not fit.
PolicyAttr parsePolicy(llvm::StringRef name, double tolerance, mlir::MLIRContext *context,
                       llvm::function_ref<mlir::InFlightDiagnostic()> emitError);

/// Lets upstream's bufferization bring the stages of a decode step to buffers.
void registerStageBufferization(mlir::DialectRegistry &registry);

/// Lets upstream's generate-runtime-verification check the ops' dynamic extents.
void registerRuntimeVerification(mlir::DialectRegistry &registry);

/// Lets upstream's one-shot-bufferize bring the ops to buffers, caches with their encoding as memory space, and its deallocation see whose buffer an append gives.
void registerBufferization(mlir::DialectRegistry &registry);

} // namespace aligned

#endif // ALIGNED_DIALECT_ALIGNED_IR_ALIGNED_H
