// RUN: aligned-opt %s --generate-runtime-verification --canonicalize --cse | FileCheck %s

// What the verifier checks of static extents is asserted of dynamic ones.

// CHECK-LABEL: func.func @attention(
// CHECK-SAME: %[[Q:[^:]*]]: tensor<?x4x1x16xf16>, %[[K:[^:]*]]: tensor<1x2x?x16xf16>, %[[V:[^:]*]]: tensor<1x2x?x16xf16>
// CHECK-DAG: %[[TK:.*]] = tensor.dim %[[K]], %c2
// CHECK-DAG: %[[TV:.*]] = tensor.dim %[[V]], %c2
// CHECK-DAG: %[[TOKENS:.*]] = arith.cmpi eq, %[[TK]], %[[TV]]
// CHECK-DAG: cf.assert %[[TOKENS]], "'aligned.attention' op expected key and value to agree in tokens"
// CHECK-DAG: %[[BQ:.*]] = tensor.dim %[[Q]], %c0
// CHECK-DAG: %[[BATCH:.*]] = arith.cmpi eq, %[[BQ]], %c1
// CHECK-DAG: cf.assert %[[BATCH]], "'aligned.attention' op expected query and key to agree in batch"
// CHECK: aligned.attention
func.func @attention(%q: tensor<?x4x1x16xf16>, %k: tensor<1x2x?x16xf16>, %v: tensor<1x2x?x16xf16>, %scale: f32) -> tensor<?x4x1x16xf16> {
  %out = aligned.attention %q, %k, %v scale %scale : tensor<?x4x1x16xf16>, tensor<1x2x?x16xf16>, tensor<1x2x?x16xf16> -> tensor<?x4x1x16xf16>
  return %out : tensor<?x4x1x16xf16>
}

// CHECK-LABEL: func.func @promise(
// CHECK: cf.assert %{{.*}}, "'aligned.attention' op expected query to have the result's tokens"
// CHECK: aligned.attention
func.func @promise(%q: tensor<1x4x?x16xf16>, %k: tensor<1x2x8x16xf16>, %v: tensor<1x2x8x16xf16>, %scale: f32) -> tensor<1x4x2x16xf16> {
  %out = aligned.attention %q, %k, %v scale %scale : tensor<1x4x?x16xf16>, tensor<1x2x8x16xf16>, tensor<1x2x8x16xf16> -> tensor<1x4x2x16xf16>
  return %out : tensor<1x4x2x16xf16>
}

// CHECK-LABEL: func.func @append(
// CHECK: "'aligned.append' op expected tokens and cache to agree in heads"
// CHECK: "'aligned.append' op expected cache and tokens to add up to the result"
func.func @append(%new: tensor<1x?x1x16xf16>, %cache: tensor<1x2x?x16xf16>) -> tensor<1x2x64x16xf16> {
  %out = aligned.append %new to %cache : tensor<1x?x1x16xf16> to tensor<1x2x?x16xf16> -> tensor<1x2x64x16xf16>
  return %out : tensor<1x2x64x16xf16>
}

// What takes the place of others lies within them; a position below zero is a large one.
// CHECK-LABEL: func.func @replace(
// CHECK-SAME: %{{.*}}: tensor<1x2x3x16xf16>, %[[CACHE:[^:]*]]: tensor<1x2x?x16xf16>, %[[AT:[^:]*]]: index)
// CHECK-DAG: %[[TOKENS:.*]] = tensor.dim %[[CACHE]], %c2
// CHECK: %[[ENOUGH:.*]] = arith.cmpi uge, %[[TOKENS]], %c3
// CHECK: cf.assert %[[ENOUGH]], "'aligned.append' op expected positions of the cache's tokens"
// CHECK: %[[LAST:.*]] = arith.{{.*}} %[[TOKENS]], %c
// CHECK: %[[WITHIN:.*]] = arith.cmpi ule, %[[AT]], %[[LAST]]
// CHECK: cf.assert %[[WITHIN]], "'aligned.append' op expected positions of the cache's tokens"
func.func @replace(%new: tensor<1x2x3x16xf16>, %cache: tensor<1x2x?x16xf16>, %position: index) -> tensor<1x2x?x16xf16> {
  %out = aligned.append %new at %position to %cache : tensor<1x2x3x16xf16> to tensor<1x2x?x16xf16> -> tensor<1x2x?x16xf16>
  return %out : tensor<1x2x?x16xf16>
}

// A mask by numbers has one for each token.
// CHECK-LABEL: func.func @mask(
// CHECK-SAME: %[[K:[^:]*]]: tensor<1x2x?x16xf16>, %{{.*}}: f32, %[[M:[^:]*]]: tensor<1x1x1x?xf32>)
// CHECK-DAG: %[[NUMBERS:.*]] = tensor.dim %[[M]], %c3
// CHECK-DAG: %[[TOKENS:.*]] = tensor.dim %[[K]], %c2
// CHECK-DAG: %[[SAME:.*]] = arith.cmpi eq, %[[NUMBERS]], %[[TOKENS]]
// CHECK: cf.assert %[[SAME]], "'aligned.decode_attention' op expected attn_mask and key to agree in tokens"
// CHECK: aligned.decode_attention
func.func @mask(%q: tensor<1x4x1x16xf16>, %k: tensor<1x2x?x16xf16>, %scale: f32, %mask: tensor<1x1x1x?xf32>) -> tensor<1x4x1x16xf32> {
  %acc, %max, %sum = aligned.decode_attention %q, %k, %k scale %scale attn_mask %mask : tensor<1x1x1x?xf32> policy <exact>
      : tensor<1x4x1x16xf16>, tensor<1x2x?x16xf16>, tensor<1x2x?x16xf16> -> tensor<1x4x1x16xf32>, tensor<1x4x1xf32>, tensor<1x4x1xf32>
  return %acc : tensor<1x4x1x16xf32>
}

// Nothing is left to ask.
// CHECK-LABEL: func.func @static(
// CHECK-NOT: cf.assert
// CHECK: return
func.func @static(%q: tensor<1x4x1x16xf16>, %k: tensor<1x2x8x16xf16>, %v: tensor<1x2x8x16xf16>, %scale: f32) -> tensor<1x4x1x16xf32> {
  %acc, %max, %sum = aligned.decode_attention %q, %k, %v scale %scale policy <exact>
      : tensor<1x4x1x16xf16>, tensor<1x2x8x16xf16>, tensor<1x2x8x16xf16> -> tensor<1x4x1x16xf32>, tensor<1x4x1xf32>, tensor<1x4x1xf32>
  return %acc : tensor<1x4x1x16xf32>
}

// A stage is of a row and of splits that the key has, and has room for them. 2500 tokens are 40 tiles, 2 splits.
// CHECK-LABEL: func.func @scan(
// CHECK-SAME: %[[S:[a-z0-9]+]]: tensor<?x2x64xf32>, %[[T:[a-z0-9]+]]: tensor<?x2x16xf32>, %[[P:[a-z0-9]+]]: tensor<?x2x2xf32>, %[[ROW:[a-z0-9]+]]: index, %[[SPLIT:[a-z0-9]+]]: index
// CHECK-DAG: %[[OWN:.*]] = tensor.dim %[[P]], %c0
// CHECK-DAG: %[[END:.*]] = arith.addi %[[SPLIT]], %[[OWN]]
// CHECK-DAG: %[[IS_ROW:.*]] = arith.cmpi ult, %[[ROW]], %c1
// CHECK-DAG: cf.assert %[[IS_ROW]], "'aligned.scan' op expected a row of the key"
// CHECK-DAG: %[[IS_SPLIT:.*]] = arith.cmpi ule, %[[SPLIT]], %c2
// CHECK-DAG: cf.assert %[[IS_SPLIT]], "'aligned.scan' op expected a split of the key"
// CHECK-DAG: %[[LEFT:.*]] = arith.subi %c2, %[[SPLIT]]
// CHECK-DAG: %[[THERE:.*]] = arith.cmpi ule, %[[OWN]], %[[LEFT]]
// CHECK-DAG: cf.assert %[[THERE]], "'aligned.scan' op expected no more splits than the key has"
// CHECK-DAG: %[[FROM:.*]] = arith.muli %[[SPLIT]], %c32
// CHECK-DAG: %[[LAST:.*]] = arith.muli %[[END]], %c32
// CHECK-DAG: %[[TO:.*]] = arith.minui %[[LAST]], %c40
// CHECK-DAG: %[[TILES:.*]] = arith.subi %[[TO]], %[[FROM]]
// CHECK-DAG: %[[ROOM:.*]] = tensor.dim %[[S]], %c0
// CHECK-DAG: %[[FITS:.*]] = arith.cmpi uge, %[[ROOM]], %[[TILES]]
// CHECK-DAG: cf.assert %[[FITS]], "'aligned.scan' op expected scores of all tiles of its splits"
// CHECK-DAG: "'aligned.scan' op expected tops of all tiles of its splits"
// CHECK: aligned.scan
func.func @scan(%q: tensor<1x2x1x32xf16>, %k: tensor<1x1x2500x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>, %v: tensor<1x1x2500x32xf16, #aligned.planes<fixed<4, 4, 8>, value>>,
                %scale: f32, %d: tensor<2x2x32xi8>, %f: tensor<3x8xf32>, %s: tensor<?x2x64xf32>, %t: tensor<?x2x16xf32>, %p: tensor<?x2x2xf32>, %row: index, %split: index)
    -> (tensor<?x2x64xf32>, tensor<?x2x16xf32>, tensor<?x2x2xf32>) {
  %0:3 = aligned.scan %q, %k, %v, %d, %f scale %scale row %row split %split policy <budget, tolerance = 0.25>
      outs(%s, %t, %p : tensor<?x2x64xf32>, tensor<?x2x16xf32>, tensor<?x2x2xf32>)
      : tensor<1x2x1x32xf16>, tensor<1x1x2500x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>, tensor<1x1x2500x32xf16, #aligned.planes<fixed<4, 4, 8>, value>>, tensor<2x2x32xi8>, tensor<3x8xf32>
      -> tensor<?x2x64xf32>, tensor<?x2x16xf32>, tensor<?x2x2xf32>
  return %0#0, %0#1, %0#2 : tensor<?x2x64xf32>, tensor<?x2x16xf32>, tensor<?x2x2xf32>
}

// CHECK-LABEL: func.func @attend(
// CHECK-DAG: "'aligned.attend' op expected a row of the key"
// CHECK-DAG: "'aligned.attend' op expected no more splits than the key has"
// CHECK-DAG: "'aligned.attend' op expected outs of as many splits"
// CHECK-DAG: "'aligned.attend' op expected parts of all splits of the key"
// CHECK-DAG: "'aligned.attend' op expected scores of all tiles of its splits"
// CHECK: aligned.attend
func.func @attend(%q: tensor<1x2x1x32xf16>, %k: tensor<1x1x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>, %v: tensor<1x1x?x32xf16, #aligned.planes<fixed<4, 4, 8>, value>>,
                  %d: tensor<2x2x32xi8>, %f: tensor<3x8xf32>, %m: tensor<32xf32>, %s: tensor<?x2x64xf32>, %t: tensor<?x2x16xf32>, %p: tensor<?x2x2xf32>, %row: index, %split: index,
                  %a: tensor<?x2x1x32xf32>, %x: tensor<1x2x1xf32>) -> tensor<?x2x1x32xf32> {
  %0:3 = aligned.attend %q, %k, %v, %d, %f, %m, %s, %t, %p row %row split %split policy <budget, tolerance = 0.25>
      outs(%a, %x, %x : tensor<?x2x1x32xf32>, tensor<1x2x1xf32>, tensor<1x2x1xf32>)
      : tensor<1x2x1x32xf16>, tensor<1x1x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>, tensor<1x1x?x32xf16, #aligned.planes<fixed<4, 4, 8>, value>>, tensor<2x2x32xi8>, tensor<3x8xf32>,
        tensor<32xf32>, tensor<?x2x64xf32>, tensor<?x2x16xf32>, tensor<?x2x2xf32> -> tensor<?x2x1x32xf32>, tensor<1x2x1xf32>, tensor<1x2x1xf32>
  return %0#0 : tensor<?x2x1x32xf32>
}

// CHECK-LABEL: func.func @prepare(
// CHECK: %[[IS_ROW:.*]] = arith.cmpi ult, %{{.*}}, %c6
// CHECK: cf.assert %[[IS_ROW]], "'aligned.prepare' op expected a row of the key"
// CHECK: aligned.prepare
func.func @prepare(%q: tensor<2x6x1x32xf16>, %k: tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>, %v: tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, value>>,
                   %scale: f32, %d: tensor<2x2x32xi8>, %f: tensor<3x8xf32>, %m: tensor<32xf32>, %row: index) -> tensor<3x8xf32> {
  %0:3 = aligned.prepare %q, %k, %v scale %scale row %row policy <budget, tolerance = 0.25> outs(%d, %f, %m : tensor<2x2x32xi8>, tensor<3x8xf32>, tensor<32xf32>)
      : tensor<2x6x1x32xf16>, tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>, tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, value>>
      -> tensor<2x2x32xi8>, tensor<3x8xf32>, tensor<32xf32>
  return %0#1 : tensor<3x8xf32>
}

// On buffers nothing is left to check.
// CHECK-LABEL: func.func @buffers(
// CHECK-NEXT: aligned.decode_attention
// CHECK-NEXT: return
func.func @buffers(%q: memref<1x2x1x32xf16>, %k: memref<1x1x?x32xf16>, %v: memref<1x1x?x32xf16>, %scale: f32, %acc: memref<1x2x1x32xf32>, %max: memref<1x2x1xf32>, %sum: memref<1x2x1xf32>) {
  aligned.decode_attention %q, %k, %v scale %scale policy <exact> into %acc, %max, %sum
      : memref<1x2x1x32xf16>, memref<1x1x?x32xf16>, memref<1x1x?x32xf16> into memref<1x2x1x32xf32>, memref<1x2x1xf32>, memref<1x2x1xf32>
  return
}

// Dense copies are there or not when the program runs.
// CHECK-LABEL: func.func @dense_copy(
// CHECK: %[[THERE:.*]] = aligned.has_dense_copy
// CHECK: cf.assert %[[THERE]], "'aligned.decode_attention' op expected caches with dense copies"
// CHECK: aligned.decode_attention {{.*}} from_dense_copy
func.func @dense_copy(%q: tensor<1x2x1x16xf16>, %k: tensor<1x2x64x16xf16, #aligned.planes<fixed<4, 4, 8>, key>>, %v: tensor<1x2x64x16xf16, #aligned.planes<fixed<4, 4, 8>, value>>,
                      %s: f32) -> tensor<1x2x1x16xf32> {
  %a:3 = aligned.decode_attention %q, %k, %v scale %s policy <exact> from_dense_copy
      : tensor<1x2x1x16xf16>, tensor<1x2x64x16xf16, #aligned.planes<fixed<4, 4, 8>, key>>, tensor<1x2x64x16xf16, #aligned.planes<fixed<4, 4, 8>, value>>
      -> tensor<1x2x1x16xf32>, tensor<1x2x1xf32>, tensor<1x2x1xf32>
  return %a#0 : tensor<1x2x1x16xf32>
}

// A11, A12: numbers that are operands are such as attributes may be.
// CHECK-LABEL: func.func @numbers(
// CHECK-SAME: %[[C:[a-z0-9]+]]: f32, %[[W:[a-z0-9]+]]: index, %[[N:[a-z0-9]+]]: index)
// CHECK: %[[SOME:.*]] = arith.cmpi sge, %[[W]], %c1
// CHECK: cf.assert %[[SOME]], "'aligned.decode_attention' op expected a window of 1 token or more"
// CHECK: %[[NONE:.*]] = arith.cmpi sge, %[[N]], %c0
// CHECK: cf.assert %[[NONE]], "'aligned.decode_attention' op expected 0 sinks or more"
// CHECK: %[[LEAST:.*]] = arith.cmpf oge, %[[C]], %cst
// CHECK: %[[MOST:.*]] = arith.cmpf ole, %[[C]], %cst
// CHECK: %[[BOTH:.*]] = arith.andi %[[LEAST]], %[[MOST]]
// CHECK: cf.assert %[[BOTH]], "'aligned.decode_attention' op expected a softcap from 1e-30 to 1e+30"
func.func @numbers(%q: tensor<1x4x1x16xf16>, %k: tensor<1x2x8x16xf16>, %v: tensor<1x2x8x16xf16>, %scale: f32, %c: f32, %w: index, %n: index) -> tensor<1x4x1x16xf32> {
  %a:3 = aligned.decode_attention %q, %k, %v scale %scale softcap %c mask <window = %w, sinks = %n> policy <exact>
      : tensor<1x4x1x16xf16>, tensor<1x2x8x16xf16>, tensor<1x2x8x16xf16> -> tensor<1x4x1x16xf32>, tensor<1x4x1xf32>, tensor<1x4x1xf32>
  return %a#0 : tensor<1x4x1x16xf32>
}
