// The ops of the dialect: attention as a declaration, caches, and decode attention as it is computed.
//
// The ops that a kernel or the runtime performs (pack, unpack, append, decode_attention) stand in two forms. On tensors they are values of values. On
// buffers, which bufferization makes of them, a cache is a memref whose memory space is the plane encoding: an object of the runtime, which its ops change
// in place; and what an op gives is written to buffers that it is handed, named behind `into`.
#ifndef ALIGNED_OPS_TD
#define ALIGNED_OPS_TD

include "aligned/Dialect/Aligned/IR/AlignedAttrs.td"
include "mlir/Interfaces/InferTypeOpInterface.td"
include "mlir/Interfaces/SideEffectInterfaces.td"
include "mlir/Interfaces/ViewLikeInterface.td"

class Aligned_Op<string opMnemonic, list<Trait> traits = []> : Op<Aligned_Dialect, opMnemonic, traits>;

/// Pure on tensors; on buffers it reads what it is given and writes where it is told.
class Aligned_BufferizableOp<string opMnemonic, list<Trait> traits = []> : Aligned_Op<opMnemonic, traits # [
    DeclareOpInterfaceMethods<MemoryEffectsOpInterface>, DeclareOpInterfaceMethods<ConditionallySpeculatable>]>;

// [batch, heads, tokens or queries, head_dim]
def Aligned_Float : AnyTypeOf<[F16, BF16, F32], "f16, bf16 or f32">;
def Aligned_HeadsTensor : TensorRankOf<[Aligned_Float], [4]>;
def Aligned_StateTensor : TensorRankOf<[F32], [4]>; // accumulator [batch, q_heads, queries, value_dim]
def Aligned_RowTensor : TensorRankOf<[F32], [3]>;   // max, sum, bound or estimate [batch, q_heads, queries]
def Aligned_HeadsBuffer : MemRefRankOf<[Aligned_Float], [4]>;
def Aligned_Heads : AnyTypeOf<[Aligned_HeadsTensor, Aligned_HeadsBuffer]>;
def Aligned_StateBuffer : MemRefRankOf<[F32], [3, 4]>; // any of a state's

//===----------------------------------------------------------------------===//
// Attention, declared
//===----------------------------------------------------------------------===//

def Aligned_AttentionOp : Aligned_Op<"attention", [Pure, AttrSizedOperandSegments, AttrSizedResultSegments]> {
  let summary = "softmax(scale * Q K^T) V for grouped query heads";
  let description = [{
    Scaled dot-product attention of every query over all tokens of its kv head:

        score[b, h, i, t] = scale * sum_c query[b, h, i, c] * key[b, h / G, t, c]
        out[b, h, i, :]   = sum_t softmax_t(score[b, h, i, :])[t] * value[b, h / G, t, :]      G = q_heads / kv_heads

    Sums are taken in f32 or better; the result is rounded to its element type once. Zero tokens give zero.

    A row whose scores are all -inf gives NaN, as the formula says, or zero with `masked_zero` (front ends guard it so).

    With `softcap C` a score s becomes `C tanh(s / C)`. With `mask`, scores of tokens that the query doesn't see are -inf after that, and their values
    take no part, not even as 0 * inf; the queries are the newest tokens of `key`.

    (P8) `attn_mask` is a mask by numbers, [batch or 1, q_heads or 1, queries or 1, tokens], where a 1 serves all: of f32, f16 or bf16 it is added to scores (after the cap), of i1 it
    says which tokens are seen. Where it is -inf or false, values take no part. `sink_logits` [q_heads], f32, is a logit per query head without a value: it adds e^logit to the sum of
    the softmax.

    Constraints:
    - (A1) key and value agree in batch, kv_heads and tokens; query and key in batch and head_dim
    - (A2) q_heads is a multiple of kv_heads
    - (A3) the result is [batch, q_heads, queries, value_dim]
    - (A4) a packed key has role `key`, a packed value has role `value`
    - (A11) what `#aligned.mask` asks of a mask
    - (A12) C is from 1e-30 to 1e+30
    - (A15) attn_mask and sink_logits have the shapes above

    Either both of key and value are packed or neither is.

    `policies` says how closely K and V may be read, where this attention wants another error than its module: one policy for all kv heads or one for
    each (A10 of `aligned.decode_attention`).

    With `certified` the op also returns, per query row, what is known of the error that its policy and storage make (P4): `bound`, which the
    largest error of the row's channels against exact attention over the tokens as they were appended never exceeds, and `estimate`, the relative L2
    error to expect. Both are for rows whose exact output is finite; where it is not, they need not be numbers. `estimate` is 0 under policies
    that predict nothing.

    ```mlir
    %out = aligned.attention %q, %k, %v scale %scale masked_zero
        : tensor<2x8x1x32xf16>, tensor<2x2x?x32xf16>, tensor<2x2x?x32xf16> -> tensor<2x8x1x32xf16>
    %out = aligned.attention %q, %k, %v scale %scale softcap 50.0 mask <causal, window = 1024, sinks = 4>
        : tensor<2x8x3x32xf16>, tensor<2x2x?x32xf16>, tensor<2x2x?x32xf16> -> tensor<2x8x3x32xf16>
    ```
  }];
  let arguments = (ins Aligned_HeadsTensor:$query, Aligned_HeadsTensor:$key, Aligned_HeadsTensor:$value,
                       F32:$scale, Optional<Aligned_AttnMask>:$attn_mask, Optional<Aligned_SinkLogits>:$sink_logits, UnitAttr:$masked_zero,
                       OptionalAttr<Aligned_PolicyArrayAttr>:$policies, OptionalAttr<F64Attr>:$softcap, OptionalAttr<Aligned_MaskAttr>:$mask);
  let results = (outs Aligned_HeadsTensor:$result, Optional<Aligned_RowTensor>:$bound, Optional<Aligned_RowTensor>:$estimate);
  let assemblyFormat = [{
    $query `,` $key `,` $value `scale` $scale (`softcap` $softcap^)? (`mask` $mask^)? (`attn_mask` $attn_mask^ `:` type($attn_mask))?
    (`sink_logits` $sink_logits^ `:` type($sink_logits))? (custom<OptionalPolicies>($policies)^)?
    (`masked_zero` $masked_zero^)? attr-dict
    `:` type($query) `,` type($key) `,` type($value) `->` type($result) (`certified` type($bound)^ `,` type($estimate))?
  }];
  let builders = [OpBuilder<(ins "::mlir::Type":$result, "::mlir::Value":$query, "::mlir::Value":$key, "::mlir::Value":$value,
                                 "::mlir::Value":$scale, "bool":$maskedZero), [{
    build($_builder, $_state, result, ::mlir::Type(), ::mlir::Type(), query, key, value, scale, ::mlir::Value(), ::mlir::Value(), maskedZero, ::mlir::ArrayAttr(),
          ::mlir::FloatAttr(), MaskAttr());
  }]>];
  let hasVerifier = 1;
}

//===----------------------------------------------------------------------===//
// Caches
//===----------------------------------------------------------------------===//

def Aligned_PackOp : Aligned_BufferizableOp<"pack"> {
  let summary = "stores a dense tensor in bit planes";
  let description = [{
    Makes a cache of which every token is stored by itself (S1) in the planes of the result's encoding. `fixed` formats rotate keys (S2), give each token a scale code (S3) and
    round each value to a 16-bit integer (S4); `float` formats keep the bits of the half or bfloat16 (S8). Tokens that planes can't hold, such as those with a NaN, are kept aside
    with all their values (S7). Shape and element type stay the same: a packed tensor stands for the same values, rounded to 16 bits.

    On buffers `target` is a cache that was allocated for this and holds nothing yet.

    ```mlir
    %s = aligned.pack %k : tensor<1x3x?x64xf16> to tensor<1x3x?x64xf16, #aligned.planes<fixed<4, 4, 4, 4>, key>>
    aligned.pack %k into %c : memref<1x3x?x64xf16> to memref<1x3x?x64xf16, #aligned.planes<fixed<4, 4, 4, 4>, key>>
    ```
  }];
  let arguments = (ins Aligned_Heads:$source, Optional<Aligned_HeadsBuffer>:$target);
  let results = (outs Optional<Aligned_HeadsTensor>:$result);
  let assemblyFormat = "$source (`into` $target^)? attr-dict `:` type($source) `to` custom<Target>(ref($target), type($target), type($result))";
  let builders = [OpBuilder<(ins "::mlir::Type":$result, "::mlir::Value":$source), "build($_builder, $_state, result, source, ::mlir::Value());">];
  let hasVerifier = 1;
  let hasFolder = 1; // pack(unpack(x)) of all bits is x
}

def Aligned_UnpackOp : Aligned_BufferizableOp<"unpack"> {
  let summary = "reads a packed tensor back into a dense one";
  let description = [{
    Reads the top `bits` bits of each packed value: whole resident planes, down to the one that holds bit number `bits`. The middle stands for the bits below (S4). Keys come
    rotated back, with their offset (S2), and tokens kept aside as they were appended (S7). `bits` is 1 .. 16, and 16 when left out. A buffer that is written is contiguous (A16).

    ```mlir
    %d = aligned.unpack %s bits 8 : tensor<1x3x?x64xf16, #aligned.planes<fixed<4, 4, 4, 4>, key>> to tensor<1x3x?x64xf16>
    aligned.unpack %c into %b : memref<1x3x?x64xf16, #aligned.planes<fixed<4, 4, 4, 4>, key>> to memref<1x3x?x64xf16>
    ```
  }];
  let arguments = (ins Aligned_Heads:$source, Optional<Aligned_HeadsBuffer>:$target, DefaultValuedAttr<I64Attr, "16">:$bits);
  let results = (outs Optional<Aligned_HeadsTensor>:$result);
  let assemblyFormat = [{
    $source (`bits` $bits^)? (`into` $target^)? attr-dict `:` type($source) `to` custom<Target>(ref($target), type($target), type($result))
  }];
  let builders = [OpBuilder<(ins "::mlir::Type":$result, "::mlir::Value":$source), "build($_builder, $_state, result, source, ::mlir::Value());">];
  let hasVerifier = 1;
}

def Aligned_AppendOp : Aligned_BufferizableOp<"append", [DeclareOpInterfaceMethods<ViewLikeOpInterface>]> {
  let summary = "a cache with new tokens behind its old ones, or in their place";
  let description = [{
    result[b, h, :, c] is cache[b, h, :, c] followed by tokens[b, h, :, c]. On a packed cache this packs the new tokens; what is stored of the old ones stays as it is (S1).

    With `at` the new tokens take the place of those from that position on, as in a cache that was made for a largest number of tokens; the result has as many
    tokens as the cache.

    Constraints:
    - (A5) cache, tokens and result agree in all but the token dimension, which adds up where it is static; with `at` cache and result agree there, too
    - (A6) tokens are dense; the result has the cache's encoding
    - (A17) the positions of the new tokens are the cache's

    On buffers the cache is a packed one and the result is the same object, which now holds more: whoever still has the old memref sees the new tokens, too.

    ```mlir
    %c1 = aligned.append %new to %c0 : tensor<1x3x1x64xf16> to tensor<1x3x63x64xf16> -> tensor<1x3x64x64xf16>
    %c2 = aligned.append %new at %position to %c1 : tensor<1x3x1x64xf16> to tensor<1x3x64x64xf16> -> tensor<1x3x64x64xf16>
    ```
  }];
  let arguments = (ins Aligned_Heads:$tokens, Optional<Index>:$position, Aligned_Heads:$cache);
  let results = (outs Aligned_Heads:$result);
  let assemblyFormat = "$tokens (`at` $position^)? `to` $cache attr-dict `:` type($tokens) `to` type($cache) `->` type($result)";
  let builders = [OpBuilder<(ins "::mlir::Type":$result, "::mlir::Value":$tokens, "::mlir::Value":$cache), "build($_builder, $_state, result, tokens, ::mlir::Value(), cache);">];
  let hasVerifier = 1;
  let hasFolder = 1; // appending zero tokens
}

def Aligned_ForkOp : Aligned_Op<"fork", [SameOperandsAndResultType]> {
  let summary = "a new cache with the tokens of another";
  let description = [{
    On buffers only, where bufferization found that somebody appends to a cache and somebody else still reads it as it was. Each may be appended to without the
    other, which `bufferization.clone` does not promise.

    Constraint: (A14) the cache is packed

    ```mlir
    %c1 = aligned.fork %c0 : memref<1x3x?x64xf16, #aligned.planes<fixed<4, 4, 4, 4>, key>>
    ```
  }];
  let arguments = (ins Arg<Aligned_HeadsBuffer, "", [MemRead]>:$cache);
  let results = (outs Res<Aligned_HeadsBuffer, "", [MemAlloc]>:$result);
  let assemblyFormat = "$cache attr-dict `:` type($cache)";
  let hasVerifier = 1;
}

def Aligned_HasDenseCopyOp : Aligned_BufferizableOp<"has_dense_copy"> {
  let summary = "whether a key and a value can be read as they were appended";
  let description = [{
    (S10) A cache that is short may hold its tokens as they were appended, too (`aligned_cache_keep_dense`): whether it does is known when the program runs. True where both do.

    Constraint: (A14) both are packed

    ```mlir
    %both = aligned.has_dense_copy %k, %v
        : tensor<1x3x?x64xf16, #aligned.planes<fixed<4, 4, 8>, key>>, tensor<1x3x?x64xf16, #aligned.planes<fixed<4, 4, 8>, value>>
    ```
  }];
  let arguments = (ins Aligned_Heads:$key, Aligned_Heads:$value);
  let results = (outs I1:$result);
  let assemblyFormat = "$key `,` $value attr-dict `:` type($key) `,` type($value)";
  let hasVerifier = 1;
}

//===----------------------------------------------------------------------===//
// Attention, as it is computed
//===----------------------------------------------------------------------===//

def Aligned_DecodeAttentionOp : Aligned_BufferizableOp<"decode_attention", [AttrSizedOperandSegments, AttrSizedResultSegments]> {
  let summary = "softmax state of attention over one stretch of tokens, dequantisation fused";
  let description = [{
    The mergeable form of attention. Over the tokens of `key` and `value` it returns, per query row, the *softmax state*

        max = max_t score[t]        sum = sum_t e^(score[t] - max)        acc[:] = sum_t e^(score[t] - max) * value[t, :]

    in f32. States over disjoint stretches of tokens merge (`aligned.merge`), and `aligned.finish` divides. The state of no
    tokens is the identity (-inf, 0, 0). A row whose scores are all -inf has sum 0 with `masked_zero`, else sum NaN.

    Over packed caches only the planes that the policy of a kv head calls for are read, and no dequantised tensor exists. A policy may
    change the result within its error, nothing else. All query rows that share a kv head read the same bits (P3). There is one `policy` for all
    kv heads, or `policies [<...>, <...>]`, one for each; a head that is to be exact under `budget` has limits of `bits = 16 to 16`.

    `softcap`, `mask`, `attn_mask` and `sink_logits` are those of `aligned.attention`; a sink's logit is part of the state. Tiles of 64 tokens that no query sees are not read. The
    numbers of a softcap and of a mask are attributes, or operands where only the program knows them: `softcap %cap mask <causal, window = %window, sinks = %sinks>`. 0 sinks are none.
    Whoever gives them sees to it that they are such as the attributes may be (A11, A12): programs that are verified when they run refuse others. Else they do no harm, and count as
    the nearest that are; a softcap that is NaN makes NaN. Constants become attributes. Where an attention has more queries than a
    kernel takes, ops that share its key take some each, and `later` says how many tokens, those of queries to come, are newer than an op's last query:
    query i stands at `tokens - later - Q + i`. It does not say where a stretch of tokens begins: masks hold over all tokens or none.
    `tolerance_factor`, above 0, multiplies the tolerances of the policies: a number that is known when the program runs.

    With `from_dense_copy` the dense copies of the caches are read (`aligned.has_dense_copy`), not their planes.

    `attention_id` is the attention's number in its module, under which it reports what it read.

    The optional fourth result is the state of the certificate (P4): [batch, q_heads, queries, 8]. With w_t = e^(score[t] - max) as computed, B_t
    the most that score[t] may be off, m_t the largest magnitude in row t of the values and r_t the most that the row is off as it was read, it holds

        0  sum_t w_t (e^B_t - 1)      1  sum_t w_t (e^B_t - 1) m_t      2  sum_t w_t m_t      3  sum_t w_t r_t, and what rounding adds
        4  the variance to expect of a channel of acc      5  max_t m_t      6  the error to expect besides that all tokens have in common
        7  the variance to expect of sum, of which errors of scores move the whole output

    On buffers the results are written to the buffers `into`, three or four in the same order.

    Constraints: A1, A2, A4, A11, A12 of `aligned.attention`, and
    - (A7) max and sum are [batch, q_heads, queries], acc adds value_dim, the certificate adds 8
    - (A10) there is one policy or one per kv head, all of one kind
    - (A11) `later` only with a mask; an operand for each `?` of the mask, and no other
    - (A12) softcap is a number or an operand
    - (P2) `tolerance_factor` only with `budget`
    - (A15) of `aligned.attention`
    - (P1) `alignedkv` reads `float` formats; (P2) `budget` reads `fixed` formats; dense caches take `exact`
    - (A13) there are results or buffers to write to, not both
    - (A16) buffers are contiguous: their elements lie one behind the other in row-major order, from any offset on; caches have no layout
    - (A17) `from_dense_copy` is of packed caches and policy `exact`; they have dense copies when it is executed

    ```mlir
    %acc, %max, %sum = aligned.decode_attention %q, %k, %v scale %scale policy <budget, tolerance = 3.906250e-03>
        : tensor<1x9x1x64xf16>, tensor<1x3x?x64xf16, #aligned.planes<fixed<4, 4, 4, 4>, key>>,
          tensor<1x3x?x64xf16, #aligned.planes<fixed<4, 4, 4, 4>, value>>
        -> tensor<1x9x1x64xf32>, tensor<1x9x1xf32>, tensor<1x9x1xf32>
    ```
  }];
  let arguments = (ins Aligned_Heads:$query, Aligned_Heads:$key, Aligned_Heads:$value,
                       F32:$scale, Aligned_PolicyArrayAttr:$policies, UnitAttr:$masked_zero,
                       UnitAttr:$from_dense_copy, DefaultValuedAttr<I32Attr, "0">:$attention_id, OptionalAttr<F64Attr>:$softcap, OptionalAttr<Aligned_MaskAttr>:$mask,
                       Optional<F32>:$dynamic_softcap, Optional<Index>:$dynamic_window, Optional<Index>:$dynamic_sinks, Optional<Index>:$later, Optional<F32>:$tolerance_factor, Optional<Aligned_AttnMask>:$attn_mask, Optional<Aligned_SinkLogits>:$sink_logits,
                       Variadic<Aligned_StateBuffer>:$targets);
  let results = (outs Optional<Aligned_StateTensor>:$acc, Optional<Aligned_RowTensor>:$max, Optional<Aligned_RowTensor>:$sum,
                      Optional<Aligned_StateTensor>:$certificate);
  let assemblyFormat = [{
    $query `,` $key `,` $value `scale` $scale (`softcap` custom<Softcap>($softcap, $dynamic_softcap)^)? (`mask` custom<Mask>($mask, $dynamic_window, $dynamic_sinks)^)?
    (`later` $later^)? (`attn_mask` $attn_mask^ `:` type($attn_mask))? (`sink_logits` $sink_logits^ `:` type($sink_logits))? custom<Policies>($policies)
    (`tolerance_factor` $tolerance_factor^)? (`masked_zero` $masked_zero^)? (`from_dense_copy` $from_dense_copy^)? (`into` $targets^)? attr-dict
    `:` type($query) `,` type($key) `,` type($value) (`into` type($targets)^)? (`->` type($acc)^ `,` type($max) `,` type($sum))?
    (`certified` type($certificate)^)?
  }];
  let hasVerifier = 1;
  let hasCanonicalizeMethod = 1; // constants are attributes
  let extraClassDeclaration = [{
    /// Of all policies.
    PolicyKind getPolicyKind() { return ::llvm::cast<PolicyAttr>(getPolicies()[0]).getKind(); }

    /// Accumulator, max, sum and, where it is asked for, the certificate: results, or the buffers that are written.
    ::mlir::ValueRange getState() { return getTargets().empty() ? ::mlir::ValueRange(getResults()) : ::mlir::ValueRange(getTargets()); }
    bool isCertified() { return getState().size() == 4; }

    /// Then it is computed in stages.
    bool readsFixedPlanes();
  }];
}

def Aligned_MergeOp : Aligned_Op<"merge", [Pure, AttrSizedOperandSegments]> {
  let summary = "softmax state over the union of two stretches of tokens";
  let description = [{
    With m = max(max_a, max_b):

        max = m        sum = sum_a e^(max_a - m) + sum_b e^(max_b - m)        acc = acc_a e^(max_a - m) + acc_b e^(max_b - m)

    Certificates merge as acc does, but for their variances, whose weights are squared, and their largest magnitude, of which the larger is kept.

    Associative and commutative but for rounding; (acc 0, max -inf, sum 0, certificate 0) is the identity.

    Constraint: (A8) both states and the result have the same types, and both or none a certificate.
  }];
  let arguments = (ins Aligned_StateTensor:$accA, Aligned_RowTensor:$maxA, Aligned_RowTensor:$sumA, Optional<Aligned_StateTensor>:$certificateA,
                       Aligned_StateTensor:$accB, Aligned_RowTensor:$maxB, Aligned_RowTensor:$sumB, Optional<Aligned_StateTensor>:$certificateB);
  let results = (outs Aligned_StateTensor:$acc, Aligned_RowTensor:$max, Aligned_RowTensor:$sum, Optional<Aligned_StateTensor>:$certificate);
  let assemblyFormat = [{
    `(` $accA `,` $maxA `,` $sumA (`,` $certificateA^)? `)` `,` `(` $accB `,` $maxB `,` $sumB (`,` $certificateB^)? `)` attr-dict
    `:` type($acc) `,` type($max) (`certified` type($certificate)^)?
    custom<SameState>(type($accA), type($maxA), type($sumA), type($certificateA), type($accB), type($maxB), type($sumB), type($certificateB), type($sum),
                      ref(type($acc)), ref(type($max)), ref($certificateA), ref($certificateB), ref(type($certificate)))
  }];
  let hasVerifier = 1;
}

def Aligned_FinishOp : Aligned_Op<"finish", [Pure, AttrSizedResultSegments]> {
  let summary = "the output of attention from its softmax state";
  let description = [{
    out = acc / sum, rounded to the result's element type; 0 where sum is 0, which is a row that saw no token.

    From a certificate c follow, with u = c0 / sum,

        bound    = min(((1 + u) c1 + u c2 + c3) / sum, c5 + max |out|), and what rounding the result adds
        estimate = sqrt(c4 + c7 (c2 / sum)^2 + c6^2) / sum / rms(out)

    since a probability is off by no more than a factor e^B_t (1 + u), and no output lies outside the values. Both are 0 for a row that saw no token.

    Constraints:
    - (A9) acc and the result agree in shape; sum is acc without its last dimension
    - (P4) bound and estimate have sum's shape, and are there where the certificate is
  }];
  let arguments = (ins Aligned_StateTensor:$acc, Aligned_RowTensor:$sum, Optional<Aligned_StateTensor>:$certificate);
  let results = (outs Aligned_HeadsTensor:$result, Optional<Aligned_RowTensor>:$bound, Optional<Aligned_RowTensor>:$estimate);
  let assemblyFormat = [{
    $acc `,` $sum (`certificate` $certificate^)? attr-dict `:` type($acc) `,` type($sum) (`,` type($certificate)^)?
    `->` type($result) (`certified` type($bound)^ `,` type($estimate))?
  }];
  let hasVerifier = 1;
}

include "aligned/Dialect/Aligned/IR/AlignedStageOps.td"

#endif // ALIGNED_OPS_TD
