// The ops of the dialect: attention as a declaration, caches, and decode attention as it is computed.
#ifndef ALIGNED_OPS_TD
#define ALIGNED_OPS_TD

include "aligned/Dialect/Aligned/IR/AlignedAttrs.td"
include "mlir/Interfaces/InferTypeOpInterface.td"
include "mlir/Interfaces/SideEffectInterfaces.td"

class Aligned_Op<string opMnemonic, list<Trait> traits = []> : Op<Aligned_Dialect, opMnemonic, traits>;

// [batch, heads, tokens or queries, head_dim]
def Aligned_Float : AnyTypeOf<[F16, BF16, F32], "f16, bf16 or f32">;
def Aligned_HeadsTensor : TensorRankOf<[Aligned_Float], [4]>;
def Aligned_StateTensor : TensorRankOf<[F32], [4]>; // accumulator [batch, q_heads, queries, value_dim]
def Aligned_RowTensor : TensorRankOf<[F32], [3]>;   // max, sum, bound or estimate [batch, q_heads, queries]

//===----------------------------------------------------------------------===//
// Attention, declared
//===----------------------------------------------------------------------===//

def Aligned_AttentionOp : Aligned_Op<"attention", [Pure, AttrSizedResultSegments]> {
  let summary = "softmax(scale * Q K^T) V for grouped query heads";
  let description = [{
    Scaled dot-product attention of every query over all tokens of its kv head:

        score[b, h, i, t] = scale * sum_c query[b, h, i, c] * key[b, h / G, t, c]
        out[b, h, i, :]   = sum_t softmax_t(score[b, h, i, :])[t] * value[b, h / G, t, :]      G = q_heads / kv_heads

    Sums are taken in f32 or better; the result is rounded to its element type once. Zero tokens give zero.

    A row whose scores are all -inf gives NaN, as the formula says, or zero with `masked_zero` (front ends guard it so).

    With `softcap C` a score s becomes `C tanh(s / C)`. With `mask`, scores of tokens that the query doesn't see are -inf after that, and their values
    take no part, not even as 0 * inf; the queries are the newest tokens of `key`.

    Constraints:
    - (A1) key and value agree in batch, kv_heads and tokens; query and key in batch and head_dim
    - (A2) q_heads is a multiple of kv_heads
    - (A3) the result is [batch, q_heads, queries, value_dim]
    - (A4) a split key has role `key`, a split value has role `value`
    - (A11) what `#aligned.mask` asks of a mask
    - (A12) C is from 1e-30 to 1e+30

    Either both of key and value are split or neither is.

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
                       F32:$scale, UnitAttr:$masked_zero, OptionalAttr<Aligned_PolicyArrayAttr>:$policies,
                       OptionalAttr<F64Attr>:$softcap, OptionalAttr<Aligned_MaskAttr>:$mask);
  let results = (outs Aligned_HeadsTensor:$result, Optional<Aligned_RowTensor>:$bound, Optional<Aligned_RowTensor>:$estimate);
  let assemblyFormat = [{
    $query `,` $key `,` $value `scale` $scale (`softcap` $softcap^)? (`mask` $mask^)? (custom<OptionalPolicies>($policies)^)?
    (`masked_zero` $masked_zero^)? attr-dict
    `:` type($query) `,` type($key) `,` type($value) `->` type($result) (`certified` type($bound)^ `,` type($estimate))?
  }];
  let builders = [OpBuilder<(ins "::mlir::Type":$result, "::mlir::Value":$query, "::mlir::Value":$key, "::mlir::Value":$value,
                                 "::mlir::Value":$scale, "bool":$maskedZero), [{
    build($_builder, $_state, result, ::mlir::Type(), ::mlir::Type(), query, key, value, scale, maskedZero, ::mlir::ArrayAttr(),
          ::mlir::FloatAttr(), MaskAttr());
  }]>];
  let hasVerifier = 1;
}

//===----------------------------------------------------------------------===//
// Caches
//===----------------------------------------------------------------------===//

def Aligned_SplitOp : Aligned_Op<"split", [Pure]> {
  let summary = "stores a dense tensor in bit planes";
  let description = [{
    Cuts each value of full 64-token blocks into the planes of the result's encoding; tokens past the last full block stay
    dense (S4). The shape and element type stay the same: a split tensor stands for the same values, rounded to 16 bits.

    ```mlir
    %s = aligned.split %k : tensor<1x3x?x64xf16> to tensor<1x3x?x64xf16, #aligned.split<fixed<4, 4, 4, 4>, key>>
    ```
  }];
  let arguments = (ins Aligned_HeadsTensor:$source);
  let results = (outs Aligned_HeadsTensor:$result);
  let assemblyFormat = "$source attr-dict `:` type($source) `to` type($result)";
  let hasVerifier = 1;
  let hasFolder = 1; // split(join(x)) of all bits is x
}

def Aligned_JoinOp : Aligned_Op<"join", [Pure]> {
  let summary = "reads a split tensor back into a dense one";
  let description = [{
    Reads the top `bits` bits of each split value, whole planes, up to the first that holds bit number `bits`; open tokens
    and values that are not finite are exact. `bits` is 1 .. 16 and 16 when left out.

    ```mlir
    %d = aligned.join %s bits 8 : tensor<1x3x?x64xf16, #aligned.split<fixed<4, 4, 4, 4>, key>> to tensor<1x3x?x64xf16>
    ```
  }];
  let arguments = (ins Aligned_HeadsTensor:$source, DefaultValuedAttr<I64Attr, "16">:$bits);
  let results = (outs Aligned_HeadsTensor:$result);
  let assemblyFormat = "$source (`bits` $bits^)? attr-dict `:` type($source) `to` type($result)";
  let hasVerifier = 1;
}

def Aligned_AppendOp : Aligned_Op<"append", [Pure]> {
  let summary = "a cache with new tokens behind its old ones";
  let description = [{
    result[b, h, :, c] is cache[b, h, :, c] followed by tokens[b, h, :, c]. On a split cache this is the pack of the new
    tokens: they join the open block, and a block that becomes full is split once.

    Constraints:
    - (A5) cache, tokens and result agree in all but the token dimension, which adds up where it is static
    - (A6) tokens are dense; the result has the cache's encoding

    ```mlir
    %c1 = aligned.append %new to %c0 : tensor<1x3x1x64xf16> to tensor<1x3x63x64xf16> -> tensor<1x3x64x64xf16>
    ```
  }];
  let arguments = (ins Aligned_HeadsTensor:$tokens, Aligned_HeadsTensor:$cache);
  let results = (outs Aligned_HeadsTensor:$result);
  let assemblyFormat = "$tokens `to` $cache attr-dict `:` type($tokens) `to` type($cache) `->` type($result)";
  let hasVerifier = 1;
  let hasFolder = 1; // appending zero tokens
}

//===----------------------------------------------------------------------===//
// Attention, as it is computed
//===----------------------------------------------------------------------===//

def Aligned_DecodeAttentionOp : Aligned_Op<"decode_attention", [Pure]> {
  let summary = "softmax state of attention over one stretch of tokens, dequantisation fused";
  let description = [{
    The mergeable form of attention. Over the tokens of `key` and `value` it returns, per query row, the *softmax state*

        max = max_t score[t]        sum = sum_t e^(score[t] - max)        acc[:] = sum_t e^(score[t] - max) * value[t, :]

    in f32. States over disjoint stretches of tokens merge (`aligned.merge`), and `aligned.finish` divides. The state of no
    tokens is the identity (-inf, 0, 0). A row whose scores are all -inf has sum 0 with `masked_zero`, else sum NaN.

    Over split caches only the planes that the policy of a kv head calls for are read, and no dequantised tensor exists. A policy may
    change the result within its error, nothing else. All query rows that share a kv head read the same bits (P3). There is one `policy` for all
    kv heads, or `policies [<...>, <...>]`, one for each; a head that is to be exact under `budget` has limits of `bits = 16 to 16`.

    `softcap` and `mask` are those of `aligned.attention`. Blocks of 64 tokens that no query sees are not read. Where an attention has more queries than a
    kernel takes, ops that share its key take some each, and `later` says how many tokens, those of queries to come, are newer than an op's last query:
    query i stands at `tokens - later - Q + i`. It does not say where a stretch of tokens begins: masks hold over all tokens or none.

    `site` numbers the attention within its module, so that what it read can be told apart.

    The optional fourth result is the state of the certificate (P4): [batch, q_heads, queries, 6]. With w_t = e^(score[t] - max) as computed, B_t
    the most that score[t] may be off, m_t the largest magnitude in row t of the values and r_t the most that the row is off as it was read, it holds

        0  sum_t w_t (e^B_t - 1)      1  sum_t w_t (e^B_t - 1) m_t      2  sum_t w_t m_t      3  sum_t w_t r_t, and what rounding adds
        4  sum times the error to expect of a channel, as rms          5  max_t m_t

    Constraints: A1, A2, A4, A11, A12 of `aligned.attention`, and
    - (A7) max and sum are [batch, q_heads, queries], acc adds value_dim, the certificate adds 6
    - (A10) there is one policy or one per kv head, all of one kind
    - (A11) `later` only with a mask
    - (P1) `alignedkv` reads `float` formats; (P2) `budget` reads `fixed` formats; dense caches take `exact`

    ```mlir
    %acc, %max, %sum = aligned.decode_attention %q, %k, %v scale %scale policy <budget, tolerance = 3.906250e-03>
        : tensor<1x9x1x64xf16>, tensor<1x3x?x64xf16, #aligned.split<fixed<4, 4, 4, 4>, key>>,
          tensor<1x3x?x64xf16, #aligned.split<fixed<4, 4, 4, 4>, value>>
        -> tensor<1x9x1x64xf32>, tensor<1x9x1xf32>, tensor<1x9x1xf32>
    ```
  }];
  let arguments = (ins Aligned_HeadsTensor:$query, Aligned_HeadsTensor:$key, Aligned_HeadsTensor:$value,
                       F32:$scale, Aligned_PolicyArrayAttr:$policies, UnitAttr:$masked_zero,
                       DefaultValuedAttr<I32Attr, "0">:$site, OptionalAttr<F64Attr>:$softcap, OptionalAttr<Aligned_MaskAttr>:$mask,
                       Optional<Index>:$later);
  let results = (outs Aligned_StateTensor:$acc, Aligned_RowTensor:$max, Aligned_RowTensor:$sum, Optional<Aligned_StateTensor>:$certificate);
  let assemblyFormat = [{
    $query `,` $key `,` $value `scale` $scale (`softcap` $softcap^)? (`mask` $mask^)? (`later` $later^)? custom<Policies>($policies)
    (`masked_zero` $masked_zero^)? attr-dict
    `:` type($query) `,` type($key) `,` type($value) `->` type($acc) `,` type($max) `,` type($sum) (`certified` type($certificate)^)?
  }];
  let hasVerifier = 1;
  let extraClassDeclaration = [{
    /// Of all policies.
    PolicyKind getPolicyKind() { return ::llvm::cast<PolicyAttr>(getPolicies()[0]).getKind(); }
  }];
}

def Aligned_MergeOp : Aligned_Op<"merge", [Pure, AttrSizedOperandSegments]> {
  let summary = "softmax state over the union of two stretches of tokens";
  let description = [{
    With m = max(max_a, max_b):

        max = m        sum = sum_a e^(max_a - m) + sum_b e^(max_b - m)        acc = acc_a e^(max_a - m) + acc_b e^(max_b - m)

    Certificates merge as acc does, but for their last number, of which the larger is kept.

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
        estimate = c4 / sum / rms(out)

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

#endif // ALIGNED_OPS_TD
