// RUN: aligned-opt %s --aligned-raise-report=%t.json -o /dev/null 2>&1 | FileCheck %s --check-prefix=REMARK
// RUN: cat %t.json | FileCheck %s
// RUN: not aligned-opt %s --aligned-raise-report=%t/no/such/folder.json -o /dev/null 2>&1 | FileCheck %s --check-prefix=NOFILE
// RUN: not aligned-opt %s --aligned-raise-report= -o /dev/null 2>&1 | FileCheck %s --check-prefix=NONAME

// What became of each candidate. A product that is no attention is none.

// NOFILE: error: report: {{.*}}folder.json
// NONAME: expected --aligned-raise-report=FILE, got no file

// REMARK: report.mlir:{{.*}}: remark: attention not raised: expected a mask outside of the softcap, got one inside

// CHECK:      "function": "raised",
// CHECK-NEXT: "location": "{{.*}}report.mlir:{{[0-9]+}}:8",
// CHECK-NEXT: "raised": true,
// CHECK-NEXT: "match": {
// CHECK-NEXT:   "key": "tensor<1x3x65x16xf16>",
// CHECK-NEXT:   "mask": "boolean operand",
// CHECK-NEXT:   "masked_zero": false,
// CHECK-NEXT:   "query": "tensor<1x3x2x16xf16>",
// CHECK-NEXT:   "sink_logits": false,
// CHECK-NEXT:   "softcap": false,
// CHECK-NEXT:   "value": "tensor<1x3x65x16xf16>"
// CHECK:      "function": "refused",
// CHECK-NEXT: "location": "{{.*}}report.mlir:{{[0-9]+}}:8",
// CHECK-NEXT: "raised": false,
// CHECK-NEXT: "reason": "expected a mask outside of the softcap, got one inside"
// CHECK-NOT:  "function"

#id = affine_map<(b, m, t) -> (b, m, t)>
#seen = affine_map<(b, m, t) -> (t)>
#qmap = affine_map<(b, m, t, c) -> (b, m, c)>
#kmap = affine_map<(b, m, t, c) -> (b, t, c)>
#smap = affine_map<(b, m, t, c) -> (b, m, t)>

func.func @raised(%q: tensor<1x3x2x16xf16>, %k: tensor<1x3x65x16xf16>, %v: tensor<1x3x65x16xf16>, %seen: tensor<65xi1>) -> tensor<3x2x16xf32> {
  %zero = arith.constant 0.0 : f32
  %ninf = arith.constant 0xFF800000 : f32
  %q3 = tensor.collapse_shape %q [[0, 1], [2], [3]] : tensor<1x3x2x16xf16> into tensor<3x2x16xf16>
  %k3 = tensor.collapse_shape %k [[0, 1], [2], [3]] : tensor<1x3x65x16xf16> into tensor<3x65x16xf16>
  %v3 = tensor.collapse_shape %v [[0, 1], [2], [3]] : tensor<1x3x65x16xf16> into tensor<3x65x16xf16>
  %es = tensor.empty() : tensor<3x2x65xf32>
  %eo = tensor.empty() : tensor<3x2x16xf32>
  %s0 = linalg.fill ins(%zero : f32) outs(%es : tensor<3x2x65xf32>) -> tensor<3x2x65xf32>
  %o0 = linalg.fill ins(%zero : f32) outs(%eo : tensor<3x2x16xf32>) -> tensor<3x2x16xf32>
  %s = linalg.batch_matmul indexing_maps = [#qmap, #kmap, #smap] ins(%q3, %k3 : tensor<3x2x16xf16>, tensor<3x65x16xf16>) outs(%s0 : tensor<3x2x65xf32>) -> tensor<3x2x65xf32>
  %m = linalg.generic {indexing_maps = [#id, #seen, #id], iterator_types = ["parallel", "parallel", "parallel"]} ins(%s, %seen : tensor<3x2x65xf32>, tensor<65xi1>) outs(%es : tensor<3x2x65xf32>) {
  ^bb0(%a: f32, %b: i1, %out: f32):
    %r = arith.select %b, %a, %ninf : f32
    linalg.yield %r : f32
  } -> tensor<3x2x65xf32>
  %p = linalg.softmax dimension(2) ins(%m : tensor<3x2x65xf32>) outs(%es : tensor<3x2x65xf32>) -> tensor<3x2x65xf32>
  %o = linalg.batch_matmul ins(%p, %v3 : tensor<3x2x65xf32>, tensor<3x65x16xf16>) outs(%o0 : tensor<3x2x16xf32>) -> tensor<3x2x16xf32>
  return %o : tensor<3x2x16xf32>
}

func.func @refused(%q: tensor<3x2x16xf32>, %k: tensor<3x65x16xf32>, %v: tensor<3x65x16xf32>, %bias: tensor<65xf32>) -> tensor<3x2x16xf32> {
  %zero = arith.constant 0.0 : f32
  %es = tensor.empty() : tensor<3x2x65xf32>
  %eo = tensor.empty() : tensor<3x2x16xf32>
  %s0 = linalg.fill ins(%zero : f32) outs(%es : tensor<3x2x65xf32>) -> tensor<3x2x65xf32>
  %o0 = linalg.fill ins(%zero : f32) outs(%eo : tensor<3x2x16xf32>) -> tensor<3x2x16xf32>
  %s = linalg.batch_matmul indexing_maps = [#qmap, #kmap, #smap] ins(%q, %k : tensor<3x2x16xf32>, tensor<3x65x16xf32>) outs(%s0 : tensor<3x2x65xf32>) -> tensor<3x2x65xf32>
  %m = linalg.generic {indexing_maps = [#id, #seen, #id], iterator_types = ["parallel", "parallel", "parallel"]} ins(%s, %bias : tensor<3x2x65xf32>, tensor<65xf32>) outs(%es : tensor<3x2x65xf32>) {
  ^bb0(%a: f32, %b: f32, %out: f32):
    %x = arith.addf %a, %b : f32
    %r = math.tanh %x : f32
    linalg.yield %r : f32
  } -> tensor<3x2x65xf32>
  %p = linalg.softmax dimension(2) ins(%m : tensor<3x2x65xf32>) outs(%es : tensor<3x2x65xf32>) -> tensor<3x2x65xf32>
  %o = linalg.batch_matmul ins(%p, %v : tensor<3x2x65xf32>, tensor<3x65x16xf32>) outs(%o0 : tensor<3x2x16xf32>) -> tensor<3x2x16xf32>
  return %o : tensor<3x2x16xf32>
}
