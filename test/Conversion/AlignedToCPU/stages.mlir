// RUN: aligned-opt %s --convert-aligned-to-cpu="isa=avx512" --canonicalize --cse \
// RUN:   | FileCheck %s --check-prefixes=CHECK,AVX512 --implicit-check-not=llvm.x86.avx2 --implicit-check-not=math.exp --implicit-check-not=math.log --implicit-check-not=math.tanh --implicit-check-not=math.pow
// RUN: aligned-opt %s --convert-aligned-to-cpu="isa=avx2" --canonicalize --cse \
// RUN:   | FileCheck %s --check-prefixes=CHECK,AVX2 --implicit-check-not=llvm.x86.avx512 --implicit-check-not=math.exp --implicit-check-not=math.log --implicit-check-not=math.tanh --implicit-check-not=math.pow
// RUN: aligned-opt %s --convert-aligned-to-cpu="isa=avxvnni" --canonicalize --cse \
// RUN:   | FileCheck %s --check-prefixes=CHECK,AVXVNNI --implicit-check-not=llvm.x86.avx2.pmadd --implicit-check-not=.512
// RUN: aligned-opt %s --convert-aligned-to-cpu="isa=dotprod" --canonicalize --cse \
// RUN:   | FileCheck %s --check-prefixes=CHECK,DOTPROD --implicit-check-not=llvm.x86 --implicit-check-not=usdot --implicit-check-not=math.exp --implicit-check-not=math.log --implicit-check-not=math.tanh --implicit-check-not=math.pow
// RUN: aligned-opt %s --convert-aligned-to-cpu="isa=i8mm" --canonicalize --cse \
// RUN:   | FileCheck %s --check-prefixes=CHECK,I8MM --implicit-check-not=llvm.x86 --implicit-check-not=neon.sdot --implicit-check-not=math.exp --implicit-check-not=math.log --implicit-check-not=math.tanh --implicit-check-not=math.pow
// RUN: aligned-opt %s --convert-aligned-to-cpu="isa=portable" --canonicalize --cse \
// RUN:   | FileCheck %s --implicit-check-not=llvm.x86 --implicit-check-not=llvm.aarch64 --implicit-check-not=math.exp --implicit-check-not=math.log --implicit-check-not=math.tanh --implicit-check-not=math.pow

// Stages become calls of kernels: what they read and write as addresses, caches as the runtime's objects, numbers as they are.

!query = memref<2x6x2x32xf16>
!key = memref<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!value = memref<2x3x?x64xf16, #aligned.planes<fixed<4, 4, 8>, value>>
!digits = memref<2x4x32xi8>
!facts = memref<5x8xf32>
!mean = memref<64xf32>
!scores = memref<?x4x64xf32, strided<[256, 64, 1], offset: ?>>
!tops = memref<?x4x16xf32>
!parts = memref<?x2x4xf32>
!acc = memref<1x2x2x64xf32>
!sum = memref<1x2x2xf32>

// CHECK-NOT: {{ aligned[.](prepare|scan|attend)}}
// CHECK-LABEL: func.func @prepare(
// CHECK-SAME: %[[Q:[a-z0-9]+]]: memref<2x6x2x32xf16>, %[[K:[a-z0-9]+]]: !llvm.ptr, %[[V:[a-z0-9]+]]: !llvm.ptr, %[[SCALE:[a-z0-9]+]]: f32, %[[ROW:[a-z0-9]+]]: index,
// CHECK-SAME: %[[D:[a-z0-9]+]]: memref<2x4x32xi8>, %[[F:[a-z0-9]+]]: memref<5x8xf32>, %[[M:[a-z0-9]+]]: memref<64xf32>)
func.func @prepare(%q: !query, %k: !key, %v: !value, %scale: f32, %row: index, %d: !digits, %f: !facts, %m: !mean) {
  // CHECK: %[[Q_INDEX:.*]] = memref.extract_aligned_pointer_as_index %[[Q]]
  // CHECK: %[[Q_NUMBER:.*]] = arith.index_cast %[[Q_INDEX]]
  // CHECK: %[[Q_ADDRESS:.*]] = llvm.inttoptr %[[Q_NUMBER]]
  // CHECK: %[[D_INDEX:.*]] = memref.extract_aligned_pointer_as_index %[[D]]
  // CHECK: %[[D_NUMBER:.*]] = arith.index_cast %[[D_INDEX]]
  // CHECK: %[[D_ADDRESS:.*]] = llvm.inttoptr %[[D_NUMBER]]
  // CHECK: %[[F_INDEX:.*]] = memref.extract_aligned_pointer_as_index %[[F]]
  // CHECK: %[[F_NUMBER:.*]] = arith.index_cast %[[F_INDEX]]
  // CHECK: %[[F_ADDRESS:.*]] = llvm.inttoptr %[[F_NUMBER]]
  // CHECK: %[[M_INDEX:.*]] = memref.extract_aligned_pointer_as_index %[[M]]
  // CHECK: %[[M_NUMBER:.*]] = arith.index_cast %[[M_INDEX]]
  // CHECK: %[[M_ADDRESS:.*]] = llvm.inttoptr %[[M_NUMBER]]
  // CHECK: call @aligned_prepare(%[[Q_ADDRESS]], %[[K]], %[[V]], %[[SCALE]], %[[ROW]], %[[D_ADDRESS]], %[[F_ADDRESS]], %[[M_ADDRESS]])
  // CHECK-NEXT: return
  aligned.prepare %q, %k, %v scale %scale row %row policy <budget, tolerance = 0.25> outs(%d, %f, %m : !digits, !facts, !mean) : !query, !key, !value
  return
}

// Where a buffer begins, its type may say or not.
// CHECK-LABEL: func.func @scan(
// CHECK-SAME: %[[K:[a-z0-9]+]]: !llvm.ptr, %[[V:[a-z0-9]+]]: !llvm.ptr, %[[SCALE:[a-z0-9]+]]: f32, %[[ROW:[a-z0-9]+]]: index, %[[SPLIT:[a-z0-9]+]]: index, %{{.*}}: memref<2x4x32xi8>, %{{.*}}: memref<5x8xf32>,
// CHECK-SAME: %[[S:[a-z0-9]+]]: memref<?x4x64xf32, strided<[256, 64, 1], offset: ?>>, %[[T:[a-z0-9]+]]: memref<?x4x16xf32>, %[[P:[a-z0-9]+]]: memref<1x2x4xf32, strided<[8, 4, 1], offset: 16>>)
func.func @scan(%q: !query, %k: !key, %v: !value, %scale: f32, %row: index, %split: index, %d: !digits, %f: !facts, %s: !scores, %t: !tops,
                %p: memref<1x2x4xf32, strided<[8, 4, 1], offset: 16>>) {
  // CHECK: %[[S_INDEX:.*]] = memref.extract_aligned_pointer_as_index %[[S]]
  // CHECK: %[[S_NUMBER:.*]] = arith.index_cast %[[S_INDEX]]
  // CHECK: %{{.*}}, %[[OFFSET:.*]], %{{.*}}, %{{.*}} = memref.extract_strided_metadata %[[S]]
  // CHECK: %[[FLOATS:.*]] = arith.index_cast %[[OFFSET]]
  // CHECK: %[[BYTES:.*]] = arith.muli %[[FLOATS]], %c4_i64
  // CHECK: %[[S_FIRST:.*]] = arith.addi %[[S_NUMBER]], %[[BYTES]]
  // CHECK: %[[S_ADDRESS:.*]] = llvm.inttoptr %[[S_FIRST]]
  // CHECK: %[[T_INDEX:.*]] = memref.extract_aligned_pointer_as_index %[[T]]
  // CHECK: %[[T_NUMBER:.*]] = arith.index_cast %[[T_INDEX]]
  // CHECK: %[[T_ADDRESS:.*]] = llvm.inttoptr %[[T_NUMBER]]
  // CHECK: %[[P_INDEX:.*]] = memref.extract_aligned_pointer_as_index %[[P]]
  // CHECK: %[[P_NUMBER:.*]] = arith.index_cast %[[P_INDEX]]
  // CHECK: %[[P_FIRST:.*]] = arith.addi %[[P_NUMBER]], %c64_i64
  // CHECK: %[[P_ADDRESS:.*]] = llvm.inttoptr %[[P_FIRST]]
  // CHECK: call @aligned_scan(%{{[0-9]+}}, %[[K]], %[[V]], %[[SCALE]], %[[ROW]], %[[SPLIT]], %{{[0-9]+}}, %{{[0-9]+}}, %[[S_ADDRESS]], %[[T_ADDRESS]], %[[P_ADDRESS]])
  // CHECK-NEXT: return
  aligned.scan %q, %k, %v, %d, %f scale %scale row %row split %split policy <budget, tolerance = 0.25>
      outs(%s, %t, %p : !scores, !tops, memref<1x2x4xf32, strided<[8, 4, 1], offset: 16>>) : !query, !key, !value, !digits, !facts
  return
}

// Attentions of one shape share kernels: under which number they read, the kernel is told.
// CHECK-LABEL: func.func @attend(
// CHECK-SAME: %[[K:[a-z0-9]+]]: !llvm.ptr, %[[V:[a-z0-9]+]]: !llvm.ptr, %[[ROW:[a-z0-9]+]]: index, %[[SPLIT:[a-z0-9]+]]: index,
// CHECK-SAME: %[[M:[a-z0-9]+]]: memref<64xf32>, %[[S:[a-z0-9]+]]: memref<?x4x64xf32, strided<[256, 64, 1], offset: ?>>, %[[T:[a-z0-9]+]]: memref<?x4x16xf32>, %[[P:[a-z0-9]+]]: memref<?x2x4xf32>,
// CHECK-SAME: %[[A:[a-z0-9]+]]: memref<1x2x2x64xf32>, %[[X:[a-z0-9]+]]: memref<1x2x2xf32>, %[[L:[a-z0-9]+]]: memref<1x2x2xf32>)
func.func @attend(%q: !query, %k: !key, %v: !value, %row: index, %split: index, %d: !digits, %f: !facts, %m: !mean, %s: !scores, %t: !tops, %p: !parts, %a: !acc, %x: !sum, %l: !sum) {
  // CHECK-DAG: %[[THREE:.*]] = arith.constant 3 : i32
  // CHECK-DAG: %[[FOUR:.*]] = arith.constant 4 : i32
  // CHECK: memref.extract_aligned_pointer_as_index %[[M]]
  // CHECK: %[[M_ADDRESS:.*]] = llvm.inttoptr
  // CHECK: memref.extract_aligned_pointer_as_index %[[S]]
  // CHECK: %[[S_ADDRESS:.*]] = llvm.inttoptr
  // CHECK: memref.extract_aligned_pointer_as_index %[[T]]
  // CHECK: %[[T_ADDRESS:.*]] = llvm.inttoptr
  // CHECK: memref.extract_aligned_pointer_as_index %[[P]]
  // CHECK: %[[P_ADDRESS:.*]] = llvm.inttoptr
  // CHECK: memref.extract_aligned_pointer_as_index %[[A]]
  // CHECK: %[[A_ADDRESS:.*]] = llvm.inttoptr
  // CHECK: memref.extract_aligned_pointer_as_index %[[X]]
  // CHECK: %[[X_ADDRESS:.*]] = llvm.inttoptr
  // CHECK: memref.extract_aligned_pointer_as_index %[[L]]
  // CHECK: %[[L_ADDRESS:.*]] = llvm.inttoptr
  // CHECK-NEXT: call @aligned_attend(%[[Q:[0-9]+]], %[[K]], %[[V]], %[[ROW]], %[[SPLIT]], %[[D:[0-9]+]], %[[F:[0-9]+]], %[[M_ADDRESS]], %[[S_ADDRESS]], %[[T_ADDRESS]], %[[P_ADDRESS]], %[[A_ADDRESS]], %[[X_ADDRESS]], %[[L_ADDRESS]], %[[THREE]])
  // CHECK-NEXT: call @aligned_attend(%[[Q]], %[[K]], %[[V]], %[[ROW]], %[[SPLIT]], %[[D]], %[[F]], %[[M_ADDRESS]], %[[S_ADDRESS]], %[[T_ADDRESS]], %[[P_ADDRESS]], %[[A_ADDRESS]], %[[X_ADDRESS]], %[[L_ADDRESS]], %[[FOUR]])
  // CHECK-NEXT: return
  aligned.attend %q, %k, %v, %d, %f, %m, %s, %t, %p row %row split %split policy <budget, tolerance = 0.25> outs(%a, %x, %l : !acc, !sum, !sum) {attention_id = 3 : i32}
      : !query, !key, !value, !digits, !facts, !mean, !scores, !tops, !parts
  aligned.attend %q, %k, %v, %d, %f, %m, %s, %t, %p row %row split %split policy <budget, tolerance = 0.25> outs(%a, %x, %l : !acc, !sum, !sum) {attention_id = 4 : i32}
      : !query, !key, !value, !digits, !facts, !mean, !scores, !tops, !parts
  return
}

// Another function's are the same; whatever kernels are specialised for sets them apart.
// CHECK-LABEL: func.func @others(
func.func @others(%q: !query, %wide: memref<2x6x2x32xf32>, %k: !key, %v: !value, %scale: f32, %row: index, %d: !digits, %three: memref<3x4x32xi8>, %f: !facts, %m: !mean) {
  // CHECK: call @aligned_prepare(
  aligned.prepare %q, %k, %v scale %scale row %row policy <budget, tolerance = 0.25> outs(%d, %f, %m : !digits, !facts, !mean) : !query, !key, !value
  // CHECK: call @[[TOLERANCE:aligned_prepare_[0-9]+]](
  aligned.prepare %q, %k, %v scale %scale row %row policy <budget, tolerance = 0.5> outs(%d, %f, %m : !digits, !facts, !mean) : !query, !key, !value
  // CHECK-NOT: call @[[TOLERANCE]](
  // CHECK: call @[[EXACT:aligned_prepare_[0-9]+]](
  aligned.prepare %q, %k, %v scale %scale row %row policy <exact> outs(%three, %f, %m : memref<3x4x32xi8>, !facts, !mean) : !query, !key, !value
  // CHECK-NOT: call @[[TOLERANCE]](
  // CHECK-NOT: call @[[EXACT]](
  // CHECK: call @[[ELEMENT:aligned_prepare_[0-9]+]](
  aligned.prepare %wide, %k, %v scale %scale row %row policy <budget, tolerance = 0.25> outs(%d, %f, %m : !digits, !facts, !mean) : memref<2x6x2x32xf32>, !key, !value
  // CHECK: call @[[TOLERANCE]](
  aligned.prepare %q, %k, %v scale %scale row %row policy <budget, tolerance = 0.5> outs(%d, %f, %m : !digits, !facts, !mean) : !query, !key, !value
  return
}

// A mask may need to know how many tokens are newer than the last query, a certificate is one more buffer.
// CHECK-LABEL: func.func @more(
// CHECK-SAME: %[[ROW:[a-z0-9]+]]: index, %[[SPLIT:[a-z0-9]+]]: index, %[[LATER:[a-z0-9]+]]: index,
func.func @more(%q: !query, %k: !key, %v: !value, %scale: f32, %row: index, %split: index, %later: index, %d: !digits, %f: !facts, %m: !mean, %s: !scores, %t: !tops, %one: memref<1x2x4xf32>,
                %p: !parts, %a: !acc, %x: !sum, %l: !sum, %c: memref<1x2x2x8xf32>) {
  // CHECK: call @[[PREPARE:aligned_prepare_[0-9]+]]({{.*}}, %[[ROW]], %[[LATER]], %{{[0-9]+}}, %{{[0-9]+}}, %{{[0-9]+}})
  aligned.prepare %q, %k, %v scale %scale row %row mask <causal> later %later policy <budget, tolerance = 0.25> outs(%d, %f, %m : !digits, !facts, !mean) : !query, !key, !value
  // CHECK: call @[[SCAN:aligned_scan_[0-9]+]]({{.*}}, %[[ROW]], %[[SPLIT]], %[[LATER]], %{{[0-9]+}}, %{{[0-9]+}}, %{{[0-9]+}}, %{{[0-9]+}}, %{{[0-9]+}})
  aligned.scan %q, %k, %v, %d, %f scale %scale row %row split %split softcap 50.0 mask <causal> later %later policy <budget, tolerance = 0.25>
      outs(%s, %t, %one : !scores, !tops, memref<1x2x4xf32>) : !query, !key, !value, !digits, !facts
  // CHECK: call @[[ATTEND:aligned_attend_[0-9]+]]({{.*}}, %[[ROW]], %[[SPLIT]], %[[LATER]], {{.*}}, %[[CERTIFICATE:[0-9]+]], %c0_i32)
  aligned.attend %q, %k, %v, %d, %f, %m, %s, %t, %p row %row split %split softcap 50.0 mask <causal> later %later policy <budget, tolerance = 0.25> masked_zero
      outs(%a, %x, %l, %c : !acc, !sum, !sum, memref<1x2x2x8xf32>) : !query, !key, !value, !digits, !facts, !mean, !scores, !tops, !parts
  return
}

// Numbers that only the program knows are arguments.
// CHECK-LABEL: func.func @given(
// CHECK-SAME: %[[C:[a-z0-9]+]]: f32, %[[W:[a-z0-9]+]]: index, %[[N:[a-z0-9]+]]: index, %[[ROW:[a-z0-9]+]]: index, %[[SPLIT:[a-z0-9]+]]: index, %[[LATER:[a-z0-9]+]]: index,
func.func @given(%q: !query, %k: !key, %v: !value, %scale: f32, %c: f32, %w: index, %n: index, %row: index, %split: index, %later: index, %d: !digits, %f: !facts, %m: !mean, %s: !scores,
                 %t: !tops, %one: memref<1x2x4xf32>, %p: !parts, %a: !acc, %x: !sum, %l: !sum) {
  // CHECK: call @aligned_prepare_{{[0-9]+}}({{.*}}, %[[ROW]], %[[W]], %[[N]], %[[LATER]], %
  aligned.prepare %q, %k, %v scale %scale row %row mask <causal, window = %w, sinks = %n> later %later policy <budget, tolerance = 0.25> outs(%d, %f, %m : !digits, !facts, !mean)
      : !query, !key, !value
  // CHECK: call @[[SCAN:aligned_scan_[0-9]+]]({{.*}}, %[[ROW]], %[[SPLIT]], %[[C]], %[[W]], %[[N]], %[[LATER]], %
  aligned.scan %q, %k, %v, %d, %f scale %scale row %row split %split softcap %c mask <causal, window = %w, sinks = %n> later %later policy <budget, tolerance = 0.25>
      outs(%s, %t, %one : !scores, !tops, memref<1x2x4xf32>) : !query, !key, !value, !digits, !facts
  // CHECK: call @aligned_attend_{{[0-9]+}}({{.*}}, %[[ROW]], %[[SPLIT]], %[[C]], %[[W]], %[[N]], %[[LATER]], %
  aligned.attend %q, %k, %v, %d, %f, %m, %s, %t, %p row %row split %split softcap %c mask <causal, window = %w, sinks = %n> later %later policy <budget, tolerance = 0.25>
      outs(%a, %x, %l : !acc, !sum, !sum) : !query, !key, !value, !digits, !facts, !mean, !scores, !tops, !parts
  // CHECK: call @[[SCAN]]({{.*}}, %[[SCALE:[a-z0-9]+]], %[[N]], %[[W]], %[[LATER]], %
  aligned.scan %q, %k, %v, %d, %f scale %scale row %row split %split softcap %scale mask <causal, window = %n, sinks = %w> later %later policy <budget, tolerance = 0.25>
      outs(%s, %t, %one : !scores, !tops, memref<1x2x4xf32>) : !query, !key, !value, !digits, !facts
  return
}

// P8: a mask by numbers and sinks come as addresses, behind what places the queries. A kernel with them is another.
// CHECK-LABEL: func.func @numbers(
// CHECK-SAME: %[[MASK:[a-z0-9]+]]: memref<2x1x2x?xf16>, %[[LOGITS:[a-z0-9]+]]: memref<6xf32>, %[[ROW:[a-z0-9]+]]: index, %[[SPLIT:[a-z0-9]+]]: index, %[[LATER:[a-z0-9]+]]: index,
func.func @numbers(%q: !query, %k: !key, %v: !value, %scale: f32, %mask: memref<2x1x2x?xf16>, %logits: memref<6xf32>, %row: index, %split: index, %later: index, %d: !digits, %f: !facts,
                   %m: !mean, %s: !scores, %t: !tops, %one: memref<1x2x4xf32>, %p: !parts, %a: !acc, %x: !sum, %l: !sum) {
  // CHECK: memref.extract_aligned_pointer_as_index %[[MASK]]
  // CHECK: %[[MASK_ADDRESS:.*]] = llvm.inttoptr
  // CHECK: call @[[MASKED:aligned_scan_[0-9]+]]({{.*}}, %[[ROW]], %[[SPLIT]], %[[LATER]], %[[MASK_ADDRESS]], %{{[0-9]+}}, %{{[0-9]+}}, %{{[0-9]+}}, %{{[0-9]+}}, %{{[0-9]+}})
  aligned.scan %q, %k, %v, %d, %f scale %scale row %row split %split softcap 50.0 mask <causal> later %later attn_mask %mask : memref<2x1x2x?xf16> policy <budget, tolerance = 0.25>
      outs(%s, %t, %one : !scores, !tops, memref<1x2x4xf32>) : !query, !key, !value, !digits, !facts
  // CHECK: memref.extract_aligned_pointer_as_index %[[LOGITS]]
  // CHECK: %[[LOGITS_ADDRESS:.*]] = llvm.inttoptr
  // CHECK: call @aligned_attend_{{[0-9]+}}({{.*}}, %[[ROW]], %[[SPLIT]], %[[LATER]], %[[MASK_ADDRESS]], %[[LOGITS_ADDRESS]], %{{[0-9]+}}, {{.*}})
  aligned.attend %q, %k, %v, %d, %f, %m, %s, %t, %p row %row split %split softcap 50.0 mask <causal> later %later attn_mask %mask : memref<2x1x2x?xf16> sink_logits %logits : memref<6xf32>
      policy <budget, tolerance = 0.25> outs(%a, %x, %l : !acc, !sum, !sum) : !query, !key, !value, !digits, !facts, !mean, !scores, !tops, !parts
  // CHECK-NOT: call @[[MASKED]](
  // CHECK: call @aligned_scan_{{[0-9]+}}({{.*}}, %[[ROW]], %[[SPLIT]], %[[LATER]], %{{[0-9]+}}, %{{[0-9]+}}, %{{[0-9]+}}, %{{[0-9]+}}, %{{[0-9]+}})
  aligned.scan %q, %k, %v, %d, %f scale %scale row %row split %split softcap 50.0 mask <causal> later %later policy <budget, tolerance = 0.25>
      outs(%s, %t, %one : !scores, !tops, memref<1x2x4xf32>) : !query, !key, !value, !digits, !facts
  return
}

// Kernels multiply what lies in planes as integers, four bytes in each lane. They call nobody but the runtime, to tell what they read. Powers
// and logarithms are polynomials: no kernel, with a softcap or a certificate or without, needs a library's.

// CHECK-LABEL: func.func private @aligned_prepare(
// CHECK-SAME: !llvm.ptr, %{{.*}}: !llvm.ptr, %{{.*}}: !llvm.ptr, %{{.*}}: f32, %{{.*}}: index, %{{.*}}: !llvm.ptr, %{{.*}}: !llvm.ptr, %{{.*}}: !llvm.ptr) attributes {passthrough = ["aligned-kernel"]} {
// CHECK-NOT: call @

// CHECK-LABEL: func.func private @aligned_scan(
// CHECK-SAME: !llvm.ptr, %{{.*}}: !llvm.ptr, %{{.*}}: !llvm.ptr, %{{.*}}: f32, %{{.*}}: index, %{{.*}}: index, %{{.*}}: !llvm.ptr,
// CHECK-NOT: call @
// AVX512: llvm.call_intrinsic "llvm.x86.avx512.vpdpbusd.512"
// AVXVNNI: llvm.call_intrinsic "llvm.x86.avx512.vpdpbusd.256"
// DOTPROD: llvm.call_intrinsic "llvm.aarch64.neon.sdot"
// I8MM: llvm.call_intrinsic "llvm.aarch64.neon.usdot"
// AVX2: llvm.call_intrinsic "llvm.x86.avx2.pmadd.ub.sw"
// AVX2: llvm.call_intrinsic "llvm.x86.avx2.pmadd.wd"
// CHECK-NOT: call @

// CHECK-LABEL: func.func private @aligned_attend(
// CHECK-SAME: !llvm.ptr, %{{.*}}: !llvm.ptr, %{{.*}}: !llvm.ptr, %{{.*}}: index, %{{.*}}: index, %{{.*}}: !llvm.ptr,
// CHECK-SAME: %{{.*}}: i32) attributes {passthrough = ["aligned-kernel"]} {
// CHECK-NOT: call @
// CHECK: call @aligned_rt_recording()
// CHECK-NOT: call @
// AVX512: llvm.call_intrinsic "llvm.x86.avx512.mask.compress"
// AVXVNNI: llvm.call_intrinsic "llvm.x86.avx2.permd"
// AVX2: llvm.call_intrinsic "llvm.x86.avx2.permd"
// AVX512: llvm.call_intrinsic "llvm.x86.avx512.vpdpbusd.512"
// AVXVNNI: llvm.call_intrinsic "llvm.x86.avx512.vpdpbusd.256"
// AVX2: llvm.call_intrinsic "llvm.x86.avx2.pmadd.wd"
// DOTPROD: llvm.call_intrinsic "llvm.aarch64.neon.sdot"
// I8MM: llvm.call_intrinsic "llvm.aarch64.neon.usdot"
// CHECK-NOT: call @
// CHECK: call @aligned_rt_tally(
// CHECK-NOT: call @
// CHECK: call @aligned_rt_bits(
// CHECK-NOT: call @
// CHECK: return
