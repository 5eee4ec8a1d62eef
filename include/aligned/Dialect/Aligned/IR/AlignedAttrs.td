// Plane encodings of cache tensors (labels S2 to S9 of docs/Numerics.md), alignment policies (P1, P2, P7) and masks (A11).
#ifndef ALIGNED_ATTRS_TD
#define ALIGNED_ATTRS_TD

include "aligned/Dialect/Aligned/IR/AlignedDialect.td"
include "mlir/IR/AttrTypeBase.td"
include "mlir/IR/CommonAttrConstraints.td"
include "mlir/IR/EnumAttr.td"
include "mlir/IR/TensorEncoding.td"

class Aligned_Attr<string name, string attrMnemonic, list<Trait> traits = []>
    : AttrDef<Aligned_Dialect, name, traits> {
  let mnemonic = attrMnemonic;
}

class Aligned_Enum<string name, string description, list<I32EnumAttrCase> cases>
    : I32EnumAttr<name, description, cases> {
  let cppNamespace = "::aligned";
  let genSpecializedAttr = 0;
}

def Aligned_FormatKind : Aligned_Enum<"FormatKind", "what the bits of a packed value mean", [
  I32EnumAttrCase<"Fixed", 0, "fixed">, I32EnumAttrCase<"Float", 1, "float">]>;
def Aligned_CacheRole : Aligned_Enum<"CacheRole", "which side of attention a cache serves", [
  I32EnumAttrCase<"Key", 0, "key">, I32EnumAttrCase<"Value", 1, "value">]>;
def Aligned_PolicyKind : Aligned_Enum<"PolicyKind", "how the bits of each addend are chosen", [
  I32EnumAttrCase<"Exact", 0, "exact">, I32EnumAttrCase<"AlignedKV", 1, "alignedkv">,
  I32EnumAttrCase<"Budget", 2, "budget">]>;

def Aligned_PlanesAttr : Aligned_Attr<"Planes", "planes",
    [DeclareAttrInterfaceMethods<VerifiableTensorEncoding>]> {
  let summary = "storage of a cache tensor in bit planes";
  let description = [{
    Says that a tensor [batch, kv_heads, tokens, head_dim] is stored as 16-bit values cut into planes, most significant plane
    first, so that a reader may stop after the bits it needs. Tokens are stored each by itself (S1).

    - `fixed<4, 4, 8>` (S2 to S5): integers relative to a scale of their token, which a code of 8 bits gives. Keys are rotated first, less an offset of their kv head. Of b < 16 bits
      that are read, the error is at most `scale (2^-b + 2^-16)`, of all 16 `scale 2^-16`. For f16, bf16 and f32 tensors.
    - `float<8, 4, 4>` (S8): the bits of an IEEE half, the published format, for f16 tensors and for f32 ones rounded to it.
      `float<12, 4>`: the bits of a bfloat16, whose top byte holds no mantissa, for bf16 tensors. All planes together are bit
      exact.

    `resident` (S9) is how many planes are kept in memory; the missing low ones are never read. Left out, all are.

    Constraints:
    - (S4, S8) plane widths are multiples of 4, sum to 16, and there are at most 4; those of `fixed` are 4 or 8
    - (S8) the first plane of `float` holds sign and exponent: at least 8 bits, 12 for bf16 tensors
    - (S9) resident is 1 .. the number of planes
    - the tensor has rank 4 and a static head_dim that is a multiple of 16, at most 256; batch and kv_heads are static

    ```mlir
    tensor<1x3x?x64xf16, #aligned.planes<fixed<4, 4, 8>, key>>
    tensor<1x3x?x64xf16, #aligned.planes<float<8, 4, 4>, value, resident = 2>>
    ```
  }];
  let parameters = (ins
    EnumParameter<Aligned_FormatKind>:$kind,
    ArrayRefParameter<"int64_t", "bits of each plane">:$widths,
    EnumParameter<Aligned_CacheRole>:$role,
    "int64_t":$resident);
  let assemblyFormat = "`<` custom<Format>($kind, $widths) `,` $role `` custom<Resident>($resident, ref($widths)) `>`";
  let builders = [AttrBuilder<(ins "FormatKind":$kind, "::llvm::ArrayRef<int64_t>":$widths, "CacheRole":$role), [{
    return $_get($_ctxt, kind, widths, role, static_cast<int64_t>(widths.size()));
  }]>];
  let genVerifyDecl = 1;
  let extraClassDeclaration = [{
    int64_t getNumPlanes() const { return getWidths().size(); }
    /// The same format for the other side of attention.
    PlanesAttr withRole(CacheRole role) const;
    /// Groups of 4 bits in front of plane `plane`: a plane of w bits is w / 4 of them.
    int64_t getFirstLayer(int64_t plane) const;
    /// Whether tensors of this element type can be stored so.
    bool supports(::mlir::Type elementType) const;
  }];
}

def Aligned_RangeAttr : Aligned_Attr<"Range", "range"> {
  let summary = "what values a float, or each element of a shaped value, may have";
  let description = [{
    (P6) As `aligned.range` on an argument of a function, a promise that the analysis of precision starts from: every value is in
    [lower, upper], and no closer to zero than `nonzero` unless it is zero. It may be an infinity or a NaN only where the attribute says so.

    ```mlir
    func.func @f(%x: tensor<8xf16> {aligned.range = #aligned.range<[-4.0, 4.0], nonzero = 0.0625>})
    ```

    Constraints:
    - (P6) lower is not above upper, both are finite, and within what the type holds; nonzero is 0 or more, and not above both magnitudes
  }];
  let parameters = (ins
    APFloatParameter<"f64">:$lower, APFloatParameter<"f64">:$upper, APFloatParameter<"f64, the least magnitude of what isn't zero">:$nonzero,
    "bool":$infinite, "bool":$nan);
  let builders = [AttrBuilder<(ins "double":$lower, "double":$upper, "double":$nonzero, CArg<"bool", "false">:$infinite, CArg<"bool", "false">:$nan), [{
    return $_get($_ctxt, ::llvm::APFloat(lower), ::llvm::APFloat(upper), ::llvm::APFloat(nonzero), infinite, nan);
  }]>];
  let hasCustomAssemblyFormat = 1;
  let genVerifyDecl = 1;
}

// f64 without its type: 3.906250e-03.
def Aligned_Tolerance : OptionalParameter<"::mlir::FloatAttr", "L2 error to aim at, relative to the usual size of a row of V, f64"> {
  let parser = "::aligned::parseTolerance($_parser)";
  let printer = "$_printer.printFloat($_self.getValue())";
}

// [1024: 8, 4096: 4]
def Aligned_Ages : OptionalArrayRefParameter<"::aligned::AgeBits", "the most bits from an age on"> {
  let parser = "::aligned::parseAges($_parser)";
  let printer = "::aligned::printAges($_printer, $_self)";
}

def Aligned_LimitsAttr : Aligned_Attr<"Limits", "limits"> {
  let summary = "what a policy may not do on one side of attention";
  let description = [{
    (P7) Limits what the policy's rule asks for, token by token:

        bits = least of (greatest of (what the rule asks for, min), max)                 bits = min to max
        bits = least of (bits, what ages allows at T - 1 - t)                            ages = [1024: 8, 4096: 4]
        bits = every resident bit    where t < sinks or T - 1 - t < newest               of T tokens, token t

    `ages = [1024: 8, 4096: 4]` allows 8 bits from an age of 1024 tokens on, and 4 from 4096 on. `tolerance` is this side's own; without it the policy's holds.

    The scan reads the first plane of K whatever a limit says; of float formats the first plane of either side is read. Float planes of K are read by tiles: a tile is exact where any of
    its tokens is, and has the age of its newest token.

    Constraints:
    - (P7) bits are multiples of 4 from 0 to 16, the least not above the most, and are rounded up to whole planes
    - (P7) ages are above 0 and rise, their bits fall
  }];
  let parameters = (ins
    Aligned_Tolerance:$tolerance,
    DefaultValuedParameter<"::aligned::BitRange", "::aligned::BitRange()", "least and most">:$bits,
    DefaultValuedParameter<"int64_t", "0", "tokens that stay exact">:$newest,
    DefaultValuedParameter<"int64_t", "0", "first tokens that stay exact">:$sinks,
    Aligned_Ages:$ages);
  let assemblyFormat = "`<` struct(params) `>`";
  let genVerifyDecl = 1;
}

def Aligned_PolicyAttr : Aligned_Attr<"Policy", "policy"> {
  let summary = "how the bits of each addend are chosen";
  let description = [{
    - `exact`: every resident bit of every value.
    - `alignedkv` (P1): the published rule. Tiers of 8, 12 and 16 bits: a channel of K by how far its largest addend lies
      below the largest of the dot product, a row of V by how far its probability lies below the output. `float` formats.
    - `budget` (P2): every addend of an output gets the same absolute precision, so that their errors add up to about `tolerance`: the L2 error of an
      output row, relative to the usual size of a row of V. `fixed` formats. Tolerance is above 0 and below 1.

    `key` and `value` limit (P7) what the policy may do on either side. `exact` has no limits, and `alignedkv` none of tolerance.

    ```mlir
    #aligned.policy<budget, tolerance = 3.906250e-03>
    #aligned.policy<budget, tolerance = 3.906250e-03, key = <bits = 4 to 12, sinks = 4>, value = <newest = 64, ages = [1024: 8, 4096: 4]>>
    ```
  }];
  let parameters = (ins
    EnumParameter<Aligned_PolicyKind>:$kind,
    Aligned_Tolerance:$tolerance,
    OptionalParameter<"::aligned::LimitsAttr">:$key,
    OptionalParameter<"::aligned::LimitsAttr">:$value);
  let assemblyFormat = "`<` $kind (`,` struct($tolerance, $key, $value)^)? `>`";
  let builders = [
    AttrBuilder<(ins "PolicyKind":$kind), [{ return $_get($_ctxt, kind, ::mlir::FloatAttr(), LimitsAttr(), LimitsAttr()); }]>];
  let genVerifyDecl = 1;
  let extraClassDeclaration = [{
    /// What a side may add to the error, 0 where the policy has no tolerance.
    double getTolerance(CacheRole side) const;
    /// Null where there are none.
    LimitsAttr getLimits(CacheRole side) const { return side == CacheRole::Key ? getKey() : getValue(); }
  }];
}

def Aligned_MaskAttr : Aligned_Attr<"Mask", "mask"> {
  let summary = "which tokens a query sees";
  let description = [{
    (A11) Queries are the newest tokens: of Q queries over `tokens` tokens, query i stands at position `p_i = tokens - Q + i`. It sees token t if

    - not `causal`, or `t <= p_i`: no token newer than the query, and
    - there is no `window`, or `p_i - t < window`: the newest `window` tokens up to the query itself, or `t < sinks`: the first tokens of all.

    What a query doesn't see takes no part in its softmax, whatever it holds. A position may be negative, where there are fewer tokens than queries: a
    causal query there sees nothing.

    A number that is `?` (`ShapedType::kDynamic`) is an operand of the op, as ops that compute attention may have it; their text names the operand in its place.

    ```mlir
    #aligned.mask<causal>
    #aligned.mask<causal, window = 1024, sinks = 4>
    #aligned.mask<window = ?, sinks = ?>
    ```

    Constraints:
    - (A11) at least one part; a window of 1 token or more; sinks only with a window
  }];
  let parameters = (ins "bool":$causal, "int64_t":$window, "int64_t":$sinks);
  let hasCustomAssemblyFormat = 1;
  let genVerifyDecl = 1;
  let extraClassDeclaration = [{
    bool hasDynamicWindow() const { return ::mlir::ShapedType::isDynamic(getWindow()); }
    bool hasDynamicSinks() const { return ::mlir::ShapedType::isDynamic(getSinks()); }

    /// `<causal, window = 8, sinks = 4>`, where `number` parses or prints what stands behind the name of a part.
    static MaskAttr parseParts(::mlir::AsmParser &parser, ::llvm::function_ref<::mlir::ParseResult(::llvm::StringRef part, int64_t &number)> parseNumber);
    void printParts(::mlir::AsmPrinter &printer, ::llvm::function_ref<void(::llvm::StringRef part, int64_t number)> printNumber) const;
  }];
}

def Aligned_PolicyArrayAttr : TypedArrayAttrBase<Aligned_PolicyAttr, "policies, one for all kv heads or one for each">;

// P8: a mask by numbers, and a logit per query head without a value; tensors or buffers.
def Aligned_AttnMask : AnyTypeOf<[TensorRankOf<[F32, F16, BF16, I1], [4]>, MemRefRankOf<[F32, F16, BF16, I1], [4]>], "f32, f16, bf16 or i1 tensor or memref of rank 4">;
def Aligned_SinkLogits : AnyTypeOf<[TensorRankOf<[F32], [1]>, MemRefRankOf<[F32], [1]>], "f32 tensor or memref of rank 1">;

#endif // ALIGNED_ATTRS_TD
