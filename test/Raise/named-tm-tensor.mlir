// RUN: aligned-opt %s --allow-unregistered-dialect --aligned-raise-named-ops --split-input-file --verify-diagnostics | FileCheck %s

// torch-mlir repeats kv heads and makes batch and heads one for its op: both are undone, so that K and V are read once.

// CHECK-LABEL: func.func @grouped(
// CHECK-SAME: %[[Q:[a-z0-9]+]]: tensor<2x8x1x32xf16>, %[[K:[a-z0-9]+]]: tensor<2x2x?x32xf16>, %[[V:[a-z0-9]+]]: tensor<2x2x?x32xf16>)
// CHECK-NEXT: %[[SCALE:.*]] = arith.constant 0.176776692 : f32
// CHECK-NEXT: %[[OUT:.*]] = aligned.attention %[[Q]], %[[K]], %[[V]] scale %[[SCALE]] masked_zero : tensor<2x8x1x32xf16>, tensor<2x2x?x32xf16>, tensor<2x2x?x32xf16> -> tensor<2x8x1x32xf16>
// CHECK-NEXT: return %[[OUT]]
#kv = affine_map<(b, k, g, t, c) -> (b, k, t, c)>
#all = affine_map<(b, k, g, t, c) -> (b, k, g, t, c)>
func.func @grouped(%q: tensor<2x8x1x32xf16>, %k: tensor<2x2x?x32xf16>, %v: tensor<2x2x?x32xf16>) -> tensor<2x8x1x32xf16> {
  %c2 = arith.constant 2 : index
  %n = tensor.dim %k, %c2 : tensor<2x2x?x32xf16>
  %e = tensor.empty(%n) : tensor<2x2x4x?x32xf16>
  %kg = linalg.generic {indexing_maps = [#kv, #all], iterator_types = ["parallel", "parallel", "parallel", "parallel", "parallel"]} ins(%k : tensor<2x2x?x32xf16>) outs(%e : tensor<2x2x4x?x32xf16>) {
    ^bb0(%in: f16, %out: f16):
      linalg.yield %in : f16
  } -> tensor<2x2x4x?x32xf16>
  %k4 = tensor.collapse_shape %kg [[0], [1, 2], [3], [4]] : tensor<2x2x4x?x32xf16> into tensor<2x8x?x32xf16>
  %vg = linalg.broadcast ins(%v : tensor<2x2x?x32xf16>) outs(%e : tensor<2x2x4x?x32xf16>) dimensions = [2]
  %v4 = tensor.collapse_shape %vg [[0], [1, 2], [3], [4]] : tensor<2x2x4x?x32xf16> into tensor<2x8x?x32xf16>
  %q3 = tensor.collapse_shape %q [[0, 1], [2], [3]] : tensor<2x8x1x32xf16> into tensor<16x1x32xf16>
  %k3 = tensor.collapse_shape %k4 [[0, 1], [2], [3]] : tensor<2x8x?x32xf16> into tensor<16x?x32xf16>
  %v3 = tensor.collapse_shape %v4 [[0, 1], [2], [3]] : tensor<2x8x?x32xf16> into tensor<16x?x32xf16>
  %o = tensor.empty() : tensor<16x1x32xf16>
  %r = "tm_tensor.attention"(%q3, %k3, %v3, %o) <{operandSegmentSizes = array<i32: 3, 1>}> : (tensor<16x1x32xf16>, tensor<16x?x32xf16>, tensor<16x?x32xf16>, tensor<16x1x32xf16>) -> tensor<16x1x32xf16>
  %out = tensor.expand_shape %r [[0, 1], [2], [3]] output_shape [2, 8, 1, 32] : tensor<16x1x32xf16> into tensor<2x8x1x32xf16>
  return %out : tensor<2x8x1x32xf16>
}

// -----

// Heads in another order than the op's are not undone: kv heads that change places within a group are no repeats.

// CHECK-LABEL: func.func @interleaved(
// CHECK: linalg.generic
// CHECK: aligned.attention {{.*}} : tensor<2x8x1x32xf16>, tensor<2x8x5x32xf16>, tensor<2x8x5x32xf16> -> tensor<2x8x1x32xf16>
#swapped = affine_map<(b, g, k, t, c) -> (b, k, t, c)>
#all = affine_map<(b, g, k, t, c) -> (b, g, k, t, c)>
func.func @interleaved(%q: tensor<2x8x1x32xf16>, %k: tensor<2x2x5x32xf16>, %v4: tensor<2x8x5x32xf16>) -> tensor<16x1x32xf16> {
  %e = tensor.empty() : tensor<2x4x2x5x32xf16>
  %kg = linalg.generic {indexing_maps = [#swapped, #all], iterator_types = ["parallel", "parallel", "parallel", "parallel", "parallel"]} ins(%k : tensor<2x2x5x32xf16>) outs(%e : tensor<2x4x2x5x32xf16>) {
    ^bb0(%in: f16, %out: f16):
      linalg.yield %in : f16
  } -> tensor<2x4x2x5x32xf16>
  %k4 = tensor.collapse_shape %kg [[0], [1, 2], [3], [4]] : tensor<2x4x2x5x32xf16> into tensor<2x8x5x32xf16>
  %q3 = tensor.collapse_shape %q [[0, 1], [2], [3]] : tensor<2x8x1x32xf16> into tensor<16x1x32xf16>
  %k3 = tensor.collapse_shape %k4 [[0, 1], [2], [3]] : tensor<2x8x5x32xf16> into tensor<16x5x32xf16>
  %v3 = tensor.collapse_shape %v4 [[0, 1], [2], [3]] : tensor<2x8x5x32xf16> into tensor<16x5x32xf16>
  %o = tensor.empty() : tensor<16x1x32xf16>
  %r = "tm_tensor.attention"(%q3, %k3, %v3, %o) <{operandSegmentSizes = array<i32: 3, 1>}> : (tensor<16x1x32xf16>, tensor<16x5x32xf16>, tensor<16x5x32xf16>, tensor<16x1x32xf16>) -> tensor<16x1x32xf16>
  return %r : tensor<16x1x32xf16>
}

// -----

// Where nothing says what batch and heads were, each is a batch entry of one head; the scale is the op's, and V has its own width.

// CHECK-LABEL: func.func @flat(
// CHECK-SAME: %[[Q:[a-z0-9]+]]: tensor<6x3x16xf32>, %[[K:[a-z0-9]+]]: tensor<6x7x16xf32>, %[[V:[a-z0-9]+]]: tensor<6x7x48xf32>
// CHECK-DAG: %[[SCALE:.*]] = arith.constant 2.500000e-01 : f32
// CHECK-DAG: %[[Q4:.*]] = tensor.expand_shape %[[Q]] {{\[\[}}0], [1, 2], [3]] output_shape [6, 1, 3, 16]
// CHECK-DAG: %[[K4:.*]] = tensor.expand_shape %[[K]] {{\[\[}}0], [1, 2], [3]] output_shape [6, 1, 7, 16]
// CHECK-DAG: %[[V4:.*]] = tensor.expand_shape %[[V]] {{\[\[}}0], [1, 2], [3]] output_shape [6, 1, 7, 48]
// CHECK-DAG: %[[M4:.*]] = tensor.expand_shape %{{.*}} {{\[\[}}0], [1, 2], [3]] output_shape [6, 1, 3, 7]
// CHECK: %[[OUT:.*]] = aligned.attention %[[Q4]], %[[K4]], %[[V4]] scale %[[SCALE]] attn_mask %[[M4]] : tensor<6x1x3x7xi1> masked_zero : {{.*}} -> tensor<6x1x3x48xf32>
// CHECK: tensor.collapse_shape %[[OUT]] {{\[\[}}0], [1, 2], [3]] : tensor<6x1x3x48xf32> into tensor<6x3x48xf32>
func.func @flat(%q: tensor<6x3x16xf32>, %k: tensor<6x7x16xf32>, %v: tensor<6x7x48xf32>, %m: tensor<6x3x7xi1>) -> tensor<6x3x48xf32> {
  %o = tensor.empty() : tensor<6x3x48xf32>
  %r = "tm_tensor.attention"(%q, %k, %v, %m, %o) {operandSegmentSizes = array<i32: 4, 1>, scale = 2.500000e-01 : f64} : (tensor<6x3x16xf32>, tensor<6x7x16xf32>, tensor<6x7x48xf32>, tensor<6x3x7xi1>, tensor<6x3x48xf32>) -> tensor<6x3x48xf32>
  return %r : tensor<6x3x48xf32>
}

// -----

// A mask that was broadcast to all heads and queries is read as it came.

// CHECK-LABEL: func.func @masked(
// CHECK-SAME: %[[M:[a-z0-9]+]]: tensor<2x1x1x5xi1>)
// CHECK-NOT: linalg.generic
// CHECK: aligned.attention {{.*}} attn_mask %[[M]] : tensor<2x1x1x5xi1>
#one = affine_map<(b, h, m, t) -> (b, 0, m, t)>
#each = affine_map<(b, h, m, t) -> (b, h, m, t)>
func.func @masked(%q: tensor<2x4x1x16xf32>, %k: tensor<2x4x5x16xf32>, %v: tensor<2x4x5x16xf32>, %m: tensor<2x1x1x5xi1>) -> tensor<8x1x16xf32> {
  %e = tensor.empty() : tensor<2x4x1x5xi1>
  %mg = linalg.generic {indexing_maps = [#one, #each], iterator_types = ["parallel", "parallel", "parallel", "parallel"]} ins(%m : tensor<2x1x1x5xi1>) outs(%e : tensor<2x4x1x5xi1>) {
    ^bb0(%in: i1, %out: i1):
      linalg.yield %in : i1
  } -> tensor<2x4x1x5xi1>
  %q3 = tensor.collapse_shape %q [[0, 1], [2], [3]] : tensor<2x4x1x16xf32> into tensor<8x1x16xf32>
  %k3 = tensor.collapse_shape %k [[0, 1], [2], [3]] : tensor<2x4x5x16xf32> into tensor<8x5x16xf32>
  %v3 = tensor.collapse_shape %v [[0, 1], [2], [3]] : tensor<2x4x5x16xf32> into tensor<8x5x16xf32>
  %m3 = tensor.collapse_shape %mg [[0, 1], [2], [3]] : tensor<2x4x1x5xi1> into tensor<8x1x5xi1>
  %o = tensor.empty() : tensor<8x1x16xf32>
  %r = "tm_tensor.attention"(%q3, %k3, %v3, %m3, %o) <{operandSegmentSizes = array<i32: 4, 1>}> : (tensor<8x1x16xf32>, tensor<8x5x16xf32>, tensor<8x5x16xf32>, tensor<8x1x5xi1>, tensor<8x1x16xf32>) -> tensor<8x1x16xf32>
  return %r : tensor<8x1x16xf32>
}

// -----

// New tokens behind a cache that attention reads are an append; rank 4 comes as it is.

// CHECK-LABEL: func.func @appended(
// CHECK: %[[K:.*]] = aligned.append %{{.*}} to %{{.*}} : tensor<1x3x1x16xf32> to tensor<1x3x4x16xf32> -> tensor<1x3x5x16xf32>
// CHECK: aligned.attention %{{.*}}, %[[K]], %{{.*}}
func.func @appended(%q: tensor<1x3x1x16xf32>, %c: tensor<1x3x4x16xf32>, %new: tensor<1x3x1x16xf32>, %v: tensor<1x3x5x16xf32>) -> tensor<1x3x1x16xf32> {
  %k = tensor.concat dim(2) %c, %new : (tensor<1x3x4x16xf32>, tensor<1x3x1x16xf32>) -> tensor<1x3x5x16xf32>
  %r = "tm_tensor.attention"(%q, %k, %v, %q) <{operandSegmentSizes = array<i32: 3, 1>}> : (tensor<1x3x1x16xf32>, tensor<1x3x5x16xf32>, tensor<1x3x5x16xf32>, tensor<1x3x1x16xf32>) -> tensor<1x3x1x16xf32>
  return %r : tensor<1x3x1x16xf32>
}

// -----

// CHECK-LABEL: func.func @two_inputs(
// CHECK: "tm_tensor.attention"
func.func @two_inputs(%q: tensor<6x3x16xf32>, %k: tensor<6x7x16xf32>) -> tensor<6x3x16xf32> {
  // expected-remark@+1 {{attention not raised: expected 4 to 5 operands and 1 results, got 3 and 1}}
  %r = "tm_tensor.attention"(%q, %k, %q) <{operandSegmentSizes = array<i32: 2, 1>}> : (tensor<6x3x16xf32>, tensor<6x7x16xf32>, tensor<6x3x16xf32>) -> tensor<6x3x16xf32>
  return %r : tensor<6x3x16xf32>
}

// -----

func.func @segments(%q: tensor<6x3x16xf32>, %k: tensor<6x7x16xf32>) -> tensor<6x3x16xf32> {
  // expected-remark@+1 {{attention not raised: expected operandSegmentSizes of 3 inputs and 1 output, got another}}
  %r = "tm_tensor.attention"(%q, %k, %k, %q) <{operandSegmentSizes = array<i32: 2, 2>}> : (tensor<6x3x16xf32>, tensor<6x7x16xf32>, tensor<6x7x16xf32>, tensor<6x3x16xf32>) -> tensor<6x3x16xf32>
  return %r : tensor<6x3x16xf32>
}

// -----

func.func @attribute(%q: tensor<6x3x16xf32>, %k: tensor<6x7x16xf32>) -> tensor<6x3x16xf32> {
  // expected-remark@+1 {{attention not raised: expected attributes that are known (operandSegmentSizes, scale), got 'is_causal'}}
  %r = "tm_tensor.attention"(%q, %k, %k, %q) <{is_causal = true, operandSegmentSizes = array<i32: 3, 1>}> : (tensor<6x3x16xf32>, tensor<6x7x16xf32>, tensor<6x7x16xf32>, tensor<6x3x16xf32>) -> tensor<6x3x16xf32>
  return %r : tensor<6x3x16xf32>
}

// -----

func.func @rank(%q: tensor<3x16xf32>, %k: tensor<7x16xf32>) -> tensor<3x16xf32> {
  // expected-remark@+1 {{attention not raised: expected tensors of rank 3 or 4 alike, got tensor<3x16xf32> and tensor<3x16xf32>}}
  %r = "tm_tensor.attention"(%q, %k, %k, %q) <{operandSegmentSizes = array<i32: 3, 1>}> : (tensor<3x16xf32>, tensor<7x16xf32>, tensor<7x16xf32>, tensor<3x16xf32>) -> tensor<3x16xf32>
  return %r : tensor<3x16xf32>
}

// -----

// CHECK-LABEL: func.func @disagree(
// CHECK-NEXT: "tm_tensor.attention"
func.func @disagree(%q: tensor<6x3x16xf32>, %k: tensor<6x7x16xf32>, %v: tensor<6x8x16xf32>) -> tensor<6x3x16xf32> {
  // expected-remark@+1 {{attention not raised: 'aligned.attention' op expected key and value to agree in tokens, got 7 and 8}}
  %r = "tm_tensor.attention"(%q, %k, %v, %q) <{operandSegmentSizes = array<i32: 3, 1>}> : (tensor<6x3x16xf32>, tensor<6x7x16xf32>, tensor<6x8x16xf32>, tensor<6x3x16xf32>) -> tensor<6x3x16xf32>
  return %r : tensor<6x3x16xf32>
}

// -----

func.func @heads_of_rank_4(%q: tensor<1x4x3x16xf32>, %k: tensor<1x2x7x16xf32>) -> tensor<1x4x3x16xf32> {
  // expected-remark@+1 {{attention not raised: expected query, key and value of one static batch and number of heads, got tensor<1x4x3x16xf32>, tensor<1x2x7x16xf32>}}
  %r = "tm_tensor.attention"(%q, %k, %k, %q) <{operandSegmentSizes = array<i32: 3, 1>}> : (tensor<1x4x3x16xf32>, tensor<1x2x7x16xf32>, tensor<1x2x7x16xf32>, tensor<1x4x3x16xf32>) -> tensor<1x4x3x16xf32>
  return %r : tensor<1x4x3x16xf32>
}

// -----

func.func @mask_of_one_query(%q: tensor<6x3x16xf32>, %k: tensor<6x7x16xf32>, %m: tensor<6x1x7xf32>) -> tensor<6x3x16xf32> {
  // expected-remark@+1 {{attention not raised: expected a mask of all scores of tensor<6x3x16xf32> and tensor<6x7x16xf32>, got tensor<6x1x7xf32>}}
  %r = "tm_tensor.attention"(%q, %k, %k, %m, %q) <{operandSegmentSizes = array<i32: 4, 1>}> : (tensor<6x3x16xf32>, tensor<6x7x16xf32>, tensor<6x7x16xf32>, tensor<6x1x7xf32>, tensor<6x3x16xf32>) -> tensor<6x3x16xf32>
  return %r : tensor<6x3x16xf32>
}

// -----

func.func @f64(%q: tensor<6x3x16xf64>, %k: tensor<6x7x16xf64>) -> tensor<6x3x16xf64> {
  // expected-remark@+1 {{attention not raised: expected the query to be [batch, heads, tokens, head_dim] of f32, f16 or bf16, got tensor<6x1x3x16xf64>}}
  %r = "tm_tensor.attention"(%q, %k, %k, %q) <{operandSegmentSizes = array<i32: 3, 1>}> : (tensor<6x3x16xf64>, tensor<6x7x16xf64>, tensor<6x7x16xf64>, tensor<6x3x16xf64>) -> tensor<6x3x16xf64>
  return %r : tensor<6x3x16xf64>
}

// -----

func.func @dynamic_heads(%q: tensor<?x3x16xf32>, %k: tensor<?x7x16xf32>) -> tensor<?x3x16xf32> {
  // expected-remark@+1 {{attention not raised: expected the query to have a static batch, heads and head_dim, got tensor<?x1x3x16xf32>}}
  %r = "tm_tensor.attention"(%q, %k, %k, %q) <{operandSegmentSizes = array<i32: 3, 1>}> : (tensor<?x3x16xf32>, tensor<?x7x16xf32>, tensor<?x7x16xf32>, tensor<?x3x16xf32>) -> tensor<?x3x16xf32>
  return %r : tensor<?x3x16xf32>
}

// -----

func.func @buffers(%q: memref<6x3x16xf32>, %k: memref<6x7x16xf32>) {
  // expected-remark@+1 {{attention not raised: expected 4 to 5 operands and 1 results, got 4 and 0}}
  "tm_tensor.attention"(%q, %k, %k, %q) <{operandSegmentSizes = array<i32: 3, 1>}> : (memref<6x3x16xf32>, memref<6x7x16xf32>, memref<6x7x16xf32>, memref<6x3x16xf32>) -> ()
  return
}

// -----

// A step's tokens put into a cache at a place that is known when the program runs.

// CHECK-LABEL: func.func @scatter_one(
// CHECK-SAME: %[[NEW:[a-z0-9]+]]: tensor<1x2x16xf32>, %[[AT:[a-z0-9]+]]: tensor<1x1xi64>, %[[CACHE:[a-z0-9]+]]: tensor<9x2x16xf32>)
// CHECK: %[[PLACE:.*]] = tensor.extract %[[AT]]
// CHECK: %[[FIRST:.*]] = arith.index_cast %[[PLACE]] : i64 to index
// CHECK: %[[ROW:.*]] = tensor.extract_slice %[[NEW]]{{.*}} : tensor<1x2x16xf32> to tensor<2x16xf32>
// CHECK: %[[DONE:.*]] = tensor.insert_slice %[[ROW]] into %[[CACHE]][%[[FIRST]], 0, 0] [1, 2, 16] [1, 1, 1]
// CHECK: return %[[DONE]]
func.func @scatter_one(%new: tensor<1x2x16xf32>, %at: tensor<1x1xi64>, %cache: tensor<9x2x16xf32>) -> tensor<9x2x16xf32> {
  %r = "tm_tensor.scatter"(%new, %at, %cache) <{dimension_map = array<i64: 0>, operandSegmentSizes = array<i32: 2, 1>, unique_indices = true}> ({
  ^bb0(%update: f32, %old: f32):
    "tm_tensor.yield"(%update) : (f32) -> ()
  }) : (tensor<1x2x16xf32>, tensor<1x1xi64>, tensor<9x2x16xf32>) -> tensor<9x2x16xf32>
  return %r : tensor<9x2x16xf32>
}

// -----

// CHECK-LABEL: func.func @scatter_elements(
// CHECK: scf.for
// CHECK: tensor.insert_slice %{{.*}} into %{{.*}}[%{{.*}}, %{{.*}}] [1, 1] [1, 1] : tensor<f32> into tensor<9x2xf32>
func.func @scatter_elements(%new: tensor<?xf32>, %at: tensor<?x2xi32>, %cache: tensor<9x2xf32>) -> tensor<9x2xf32> {
  %r = "tm_tensor.scatter"(%new, %at, %cache) <{dimension_map = array<i64: 0, 1>, operandSegmentSizes = array<i32: 2, 1>, unique_indices = false}> ({
  ^bb0(%update: f32, %old: f32):
    "tm_tensor.yield"(%update) : (f32) -> ()
  }) : (tensor<?xf32>, tensor<?x2xi32>, tensor<9x2xf32>) -> tensor<9x2xf32>
  return %r : tensor<9x2xf32>
}

// -----

// CHECK-LABEL: func.func @scatter_add(
// CHECK: "tm_tensor.scatter"
func.func @scatter_add(%new: tensor<1x2xf32>, %at: tensor<1x1xi64>, %cache: tensor<9x2xf32>) -> tensor<9x2xf32> {
  // expected-remark@+1 {{cache update not raised: expected a region that yields the update, got one that combines it with what was there}}
  %r = "tm_tensor.scatter"(%new, %at, %cache) <{dimension_map = array<i64: 0>, operandSegmentSizes = array<i32: 2, 1>, unique_indices = true}> ({
  ^bb0(%update: f32, %old: f32):
    %sum = arith.addf %update, %old : f32
    "tm_tensor.yield"(%sum) : (f32) -> ()
  }) : (tensor<1x2xf32>, tensor<1x1xi64>, tensor<9x2xf32>) -> tensor<9x2xf32>
  return %r : tensor<9x2xf32>
}

// -----

func.func @scatter_keeps(%new: tensor<1x2xf32>, %at: tensor<1x1xi64>, %cache: tensor<9x2xf32>) -> tensor<9x2xf32> {
  // expected-remark@+1 {{cache update not raised: expected a region that yields the update, got one that combines it with what was there}}
  %r = "tm_tensor.scatter"(%new, %at, %cache) <{dimension_map = array<i64: 0>, operandSegmentSizes = array<i32: 2, 1>, unique_indices = true}> ({
  ^bb0(%update: f32, %old: f32):
    "tm_tensor.yield"(%old) : (f32) -> ()
  }) : (tensor<1x2xf32>, tensor<1x1xi64>, tensor<9x2xf32>) -> tensor<9x2xf32>
  return %r : tensor<9x2xf32>
}

// -----

func.func @scatter_short(%new: tensor<1x2xf32>, %at: tensor<1x1xi64>, %cache: tensor<9x3xf32>) -> tensor<9x3xf32> {
  // expected-remark@+1 {{cache update not raised: expected updates [number, slice...] and indices [number, depth] into the last dimensions of the original, got tensor<1x2xf32>, tensor<1x1xi64> and tensor<9x3xf32>}}
  %r = "tm_tensor.scatter"(%new, %at, %cache) <{dimension_map = array<i64: 0>, operandSegmentSizes = array<i32: 2, 1>, unique_indices = true}> ({
  ^bb0(%update: f32, %old: f32):
    "tm_tensor.yield"(%update) : (f32) -> ()
  }) : (tensor<1x2xf32>, tensor<1x1xi64>, tensor<9x3xf32>) -> tensor<9x3xf32>
  return %r : tensor<9x3xf32>
}
