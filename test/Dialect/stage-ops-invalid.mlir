// RUN: aligned-opt %s --split-input-file --verify-diagnostics

// Each stage has what belongs to it spelt out once more, since types are how its kernel knows the layout. All cases are of 2 batch entries, 3 kv heads, 6 query heads and
// 2 queries, thus of 4 query rows a row.

// What a stage reads: dense queries, and K and V in fixed planes of their roles.

!q = tensor<6x2x32xf16>
!k = tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!v = tensor<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = tensor<2x4x32xi8>
!f = tensor<5x8xf32>
!m = tensor<48xf32>
func.func @query_rank(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %m: !m, %scale: f32, %i: index) {
  // expected-error@+1 {{'aligned.prepare' op expected a query of rank 4, got 'tensor<6x2x32xf16>'}}
  %0:3 = aligned.prepare %q, %k, %v scale %scale row %i policy <budget, tolerance = 0.25> outs(%d, %f, %m : !d, !f, !m)
      : !q, !k, !v -> !d, !f, !m
  return
}

// -----

!q = tensor<2x6x2x32xf16>
!k = tensor<?x32xf16>
!v = tensor<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = tensor<2x4x32xi8>
!f = tensor<5x8xf32>
!s = tensor<?x4x64xf32>
!t = tensor<?x4x16xf32>
!part = tensor<1x2x4xf32>
func.func @key_rank(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %s: !s, %t: !t, %part: !part, %scale: f32, %i: index) {
  // expected-error@+1 {{'aligned.scan' op expected a key of rank 4, got 'tensor<?x32xf16>'}}
  %0:3 = aligned.scan %q, %k, %v, %d, %f scale %scale row %i split %i policy <budget, tolerance = 0.25> outs(%s, %t, %part : !s, !t, !part)
      : !q, !k, !v, !d, !f -> !s, !t, !part
  return
}

// -----

!q = tensor<2x6x2x32xf16>
!k = tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!v = tensor<2x3x2x24x2xf16>
!d = tensor<2x4x32xi8>
!f = tensor<5x8xf32>
!m = tensor<48xf32>
!s = tensor<?x4x64xf32>
!t = tensor<?x4x16xf32>
!parts = tensor<?x2x4xf32>
!a = tensor<1x2x2x48xf32>
!x = tensor<1x2x2xf32>
!l = tensor<1x2x2xf32>
func.func @value_rank(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %m: !m, %s: !s, %t: !t, %parts: !parts, %a: !a, %x: !x, %l: !l, %i: index) {
  // expected-error@+1 {{'aligned.attend' op expected a value of rank 4, got 'tensor<2x3x2x24x2xf16>'}}
  %0:3 = aligned.attend %q, %k, %v, %d, %f, %m, %s, %t, %parts row %i split %i policy <budget, tolerance = 0.25> outs(%a, %x, %l : !a, !x, !l)
      : !q, !k, !v, !d, !f, !m, !s, !t, !parts -> !a, !x, !l
  return
}

// -----

!q = tensor<2x6x2x32xf16>
!k = tensor<2x3x?x32xf16>
!v = tensor<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = tensor<2x4x32xi8>
!f = tensor<5x8xf32>
!m = tensor<48xf32>
func.func @dense_key(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %m: !m, %scale: f32, %i: index) {
  // expected-error@+1 {{'aligned.prepare' op expected a key in fixed planes of role 'key', got 'tensor<2x3x?x32xf16>'}}
  %0:3 = aligned.prepare %q, %k, %v scale %scale row %i policy <budget, tolerance = 0.25> outs(%d, %f, %m : !d, !f, !m)
      : !q, !k, !v -> !d, !f, !m
  return
}

// -----

!q = tensor<2x6x2x32xf16>
!k = tensor<2x3x?x32xf16, #aligned.planes<float<8, 4, 4>, key>>
!v = tensor<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = tensor<2x4x32xi8>
!f = tensor<5x8xf32>
!s = tensor<?x4x64xf32>
!t = tensor<?x4x16xf32>
!part = tensor<1x2x4xf32>
func.func @float_key(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %s: !s, %t: !t, %part: !part, %scale: f32, %i: index) {
  // expected-error@+1 {{'aligned.scan' op expected a key in fixed planes of role 'key', got 'tensor<2x3x?x32xf16, #aligned.planes<float<8, 4, 4>, key>>'}}
  %0:3 = aligned.scan %q, %k, %v, %d, %f scale %scale row %i split %i policy <budget, tolerance = 0.25> outs(%s, %t, %part : !s, !t, !part)
      : !q, !k, !v, !d, !f -> !s, !t, !part
  return
}

// -----

!q = tensor<2x6x2x32xf16>
!k = tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, value>>
!v = tensor<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = tensor<2x4x32xi8>
!f = tensor<5x8xf32>
!m = tensor<48xf32>
!s = tensor<?x4x64xf32>
!t = tensor<?x4x16xf32>
!parts = tensor<?x2x4xf32>
!a = tensor<1x2x2x48xf32>
!x = tensor<1x2x2xf32>
!l = tensor<1x2x2xf32>
func.func @key_role(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %m: !m, %s: !s, %t: !t, %parts: !parts, %a: !a, %x: !x, %l: !l, %i: index) {
  // expected-error@+1 {{'aligned.attend' op expected a key in fixed planes of role 'key', got 'tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, value>>'}}
  %0:3 = aligned.attend %q, %k, %v, %d, %f, %m, %s, %t, %parts row %i split %i policy <budget, tolerance = 0.25> outs(%a, %x, %l : !a, !x, !l)
      : !q, !k, !v, !d, !f, !m, !s, !t, !parts -> !a, !x, !l
  return
}

// -----

!q = tensor<2x6x2x32xf16>
!k = tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!v = tensor<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, key>>
!d = tensor<2x4x32xi8>
!f = tensor<5x8xf32>
!m = tensor<48xf32>
func.func @value_role(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %m: !m, %scale: f32, %i: index) {
  // expected-error@+1 {{'aligned.prepare' op expected a value in fixed planes of role 'value', got 'tensor<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, key>>'}}
  %0:3 = aligned.prepare %q, %k, %v scale %scale row %i policy <budget, tolerance = 0.25> outs(%d, %f, %m : !d, !f, !m)
      : !q, !k, !v -> !d, !f, !m
  return
}

// -----

!q = tensor<2x6x2x32xf16>
!k = tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!v = tensor<2x3x?x48xf16>
!d = tensor<2x4x32xi8>
!f = tensor<5x8xf32>
!s = tensor<?x4x64xf32>
!t = tensor<?x4x16xf32>
!part = tensor<1x2x4xf32>
func.func @dense_value(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %s: !s, %t: !t, %part: !part, %scale: f32, %i: index) {
  // expected-error@+1 {{'aligned.scan' op expected a value in fixed planes of role 'value', got 'tensor<2x3x?x48xf16>'}}
  %0:3 = aligned.scan %q, %k, %v, %d, %f scale %scale row %i split %i policy <budget, tolerance = 0.25> outs(%s, %t, %part : !s, !t, !part)
      : !q, !k, !v, !d, !f -> !s, !t, !part
  return
}

// -----

// A1, A10, A11: what holds of attention holds of its stages.

!q = tensor<1x6x2x32xf16>
!k = tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!v = tensor<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = tensor<2x4x32xi8>
!f = tensor<5x8xf32>
!m = tensor<48xf32>
func.func @batch(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %m: !m, %scale: f32, %i: index) {
  // expected-error@+1 {{'aligned.prepare' op expected query, key and value to agree in batch, kv_heads and tokens, got 'tensor<1x6x2x32xf16>', 'tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>' and 'tensor<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>'}}
  %0:3 = aligned.prepare %q, %k, %v scale %scale row %i policy <budget, tolerance = 0.25> outs(%d, %f, %m : !d, !f, !m) : !q, !k, !v -> !d, !f, !m
  return
}

// -----

!q = tensor<2x6x2x32xf16>
!k = tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!v = tensor<1x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = tensor<2x4x32xi8>
!f = tensor<5x8xf32>
!m = tensor<48xf32>
func.func @value_batch(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %m: !m, %scale: f32, %i: index) {
  // expected-error@+1 {{'aligned.prepare' op expected query, key and value to agree in batch, kv_heads and tokens, got 'tensor<2x6x2x32xf16>', 'tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>' and 'tensor<1x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>'}}
  %0:3 = aligned.prepare %q, %k, %v scale %scale row %i policy <budget, tolerance = 0.25> outs(%d, %f, %m : !d, !f, !m) : !q, !k, !v -> !d, !f, !m
  return
}

// -----

!q = tensor<2x6x2x32xf16>
!k = tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!v = tensor<2x2x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = tensor<2x4x32xi8>
!f = tensor<5x8xf32>
!m = tensor<48xf32>
func.func @kv_heads(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %m: !m, %scale: f32, %i: index) {
  // expected-error@+1 {{'aligned.prepare' op expected query, key and value to agree in batch, kv_heads and tokens, got 'tensor<2x6x2x32xf16>', 'tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>' and 'tensor<2x2x?x48xf16, #aligned.planes<fixed<8, 8>, value>>'}}
  %0:3 = aligned.prepare %q, %k, %v scale %scale row %i policy <budget, tolerance = 0.25> outs(%d, %f, %m : !d, !f, !m) : !q, !k, !v -> !d, !f, !m
  return
}

// -----

!q = tensor<2x6x2x32xf16>
!k = tensor<2x3x64x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!v = tensor<2x3x65x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = tensor<2x4x32xi8>
!f = tensor<5x8xf32>
!m = tensor<48xf32>
func.func @tokens(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %m: !m, %scale: f32, %i: index) {
  // expected-error@+1 {{'aligned.prepare' op expected query, key and value to agree in batch, kv_heads and tokens, got 'tensor<2x6x2x32xf16>', 'tensor<2x3x64x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>' and 'tensor<2x3x65x48xf16, #aligned.planes<fixed<8, 8>, value>>'}}
  %0:3 = aligned.prepare %q, %k, %v scale %scale row %i policy <budget, tolerance = 0.25> outs(%d, %f, %m : !d, !f, !m) : !q, !k, !v -> !d, !f, !m
  return
}

// -----

!q = tensor<2x6x2x32xf16>
!k = tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!v = tensor<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = tensor<2x4x32xi8>
!f = tensor<5x8xf32>
!m = tensor<48xf32>
func.func @no_policies(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %m: !m, %scale: f32, %i: index) {
  // expected-error@+1 {{'aligned.prepare' op expected one policy, or one for each of 3 kv heads, got 0}}
  %0:3 = aligned.prepare %q, %k, %v scale %scale row %i policies [] outs(%d, %f, %m : !d, !f, !m) : !q, !k, !v -> !d, !f, !m
  return
}

// -----

!q = tensor<2x6x2x32xf16>
!k = tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!v = tensor<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = tensor<2x4x32xi8>
!f = tensor<5x8xf32>
!m = tensor<48xf32>
func.func @two_policies(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %m: !m, %scale: f32, %i: index) {
  // expected-error@+1 {{'aligned.prepare' op expected one policy, or one for each of 3 kv heads, got 2}}
  %0:3 = aligned.prepare %q, %k, %v scale %scale row %i policies [<budget, tolerance = 0.25>, <budget, tolerance = 0.5>] outs(%d, %f, %m : !d, !f, !m) : !q, !k, !v -> !d, !f, !m
  return
}

// -----

!q = tensor<2x6x2x32xf16>
!k = tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!v = tensor<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = tensor<2x4x32xi8>
!f = tensor<5x8xf32>
!m = tensor<48xf32>
func.func @two_kinds(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %m: !m, %scale: f32, %i: index) {
  // expected-error@+1 {{'aligned.prepare' op expected policies that are all 'budget' or all 'exact', got 'exact'}}
  %0:3 = aligned.prepare %q, %k, %v scale %scale row %i policies [<budget, tolerance = 0.25>, <exact>, <exact>] outs(%d, %f, %m : !d, !f, !m) : !q, !k, !v -> !d, !f, !m
  return
}

// -----

!q = tensor<2x6x2x32xf16>
!k = tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!v = tensor<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = tensor<2x4x32xi8>
!f = tensor<5x8xf32>
!m = tensor<48xf32>
func.func @published(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %m: !m, %scale: f32, %i: index) {
  // expected-error@+1 {{'aligned.prepare' op expected policies that are all 'budget' or all 'exact', got 'alignedkv'}}
  %0:3 = aligned.prepare %q, %k, %v scale %scale row %i policy <alignedkv> outs(%d, %f, %m : !d, !f, !m) : !q, !k, !v -> !d, !f, !m
  return
}

// -----

!q = tensor<2x6x2x32xf16>
!k = tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!v = tensor<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = tensor<2x4x32xi8>
!f = tensor<5x8xf32>
!m = tensor<48xf32>
func.func @later(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %m: !m, %scale: f32, %i: index) {
  // expected-error@+1 {{'aligned.prepare' op expected 'later' only with a mask, got no mask}}
  %0:3 = aligned.prepare %q, %k, %v scale %scale row %i later %i policy <exact> outs(%d, %f, %m : !d, !f, !m) : !q, !k, !v -> !d, !f, !m
  return
}

// -----

// How many query rows there are, kernels want to know.

!q = tensor<2x?x2x32xf16>
!k = tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!v = tensor<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = tensor<2x4x32xi8>
!f = tensor<5x8xf32>
!m = tensor<48xf32>
func.func @dynamic_heads(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %m: !m, %scale: f32, %i: index) {
  // expected-error@+1 {{'aligned.prepare' op expected static heads, queries and head_dim that agree, got 'tensor<2x?x2x32xf16>' and 'tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>'}}
  %0:3 = aligned.prepare %q, %k, %v scale %scale row %i policy <budget, tolerance = 0.25> outs(%d, %f, %m : !d, !f, !m)
      : !q, !k, !v -> !d, !f, !m
  return
}

// -----

!q = tensor<2x6x?x32xf16>
!k = tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!v = tensor<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = tensor<2x4x32xi8>
!f = tensor<5x8xf32>
!s = tensor<?x4x64xf32>
!t = tensor<?x4x16xf32>
!part = tensor<1x2x4xf32>
func.func @dynamic_queries(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %s: !s, %t: !t, %part: !part, %scale: f32, %i: index) {
  // expected-error@+1 {{'aligned.scan' op expected static heads, queries and head_dim that agree, got 'tensor<2x6x?x32xf16>' and 'tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>'}}
  %0:3 = aligned.scan %q, %k, %v, %d, %f scale %scale row %i split %i policy <budget, tolerance = 0.25> outs(%s, %t, %part : !s, !t, !part)
      : !q, !k, !v, !d, !f -> !s, !t, !part
  return
}

// -----

!q = tensor<2x7x2x32xf16>
!k = tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!v = tensor<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = tensor<2x4x32xi8>
!f = tensor<5x8xf32>
!m = tensor<48xf32>
!s = tensor<?x4x64xf32>
!t = tensor<?x4x16xf32>
!parts = tensor<?x2x4xf32>
!a = tensor<1x2x2x48xf32>
!x = tensor<1x2x2xf32>
!l = tensor<1x2x2xf32>
func.func @heads(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %m: !m, %s: !s, %t: !t, %parts: !parts, %a: !a, %x: !x, %l: !l, %i: index) {
  // expected-error@+1 {{'aligned.attend' op expected static heads, queries and head_dim that agree, got 'tensor<2x7x2x32xf16>' and 'tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>'}}
  %0:3 = aligned.attend %q, %k, %v, %d, %f, %m, %s, %t, %parts row %i split %i policy <budget, tolerance = 0.25> outs(%a, %x, %l : !a, !x, !l)
      : !q, !k, !v, !d, !f, !m, !s, !t, !parts -> !a, !x, !l
  return
}

// -----

!q = tensor<2x6x2x32xf16>
!k = tensor<2x0x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!v = tensor<2x0x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = tensor<2x4x32xi8>
!f = tensor<5x8xf32>
!m = tensor<48xf32>
func.func @no_kv_heads(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %m: !m, %scale: f32, %i: index) {
  // expected-error@+1 {{'aligned.prepare' op expected static heads, queries and head_dim that agree, got 'tensor<2x6x2x32xf16>' and 'tensor<2x0x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>'}}
  %0:3 = aligned.prepare %q, %k, %v scale %scale row %i policy <budget, tolerance = 0.25> outs(%d, %f, %m : !d, !f, !m)
      : !q, !k, !v -> !d, !f, !m
  return
}

// -----

!q = tensor<2x6x2x48xf16>
!k = tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!v = tensor<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = tensor<2x4x32xi8>
!f = tensor<5x8xf32>
!s = tensor<?x4x64xf32>
!t = tensor<?x4x16xf32>
!part = tensor<1x2x4xf32>
func.func @head_dim(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %s: !s, %t: !t, %part: !part, %scale: f32, %i: index) {
  // expected-error@+1 {{'aligned.scan' op expected static heads, queries and head_dim that agree, got 'tensor<2x6x2x48xf16>' and 'tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>'}}
  %0:3 = aligned.scan %q, %k, %v, %d, %f scale %scale row %i split %i policy <budget, tolerance = 0.25> outs(%s, %t, %part : !s, !t, !part)
      : !q, !k, !v, !d, !f -> !s, !t, !part
  return
}

// -----

// What `prepare` writes.

!q = tensor<2x6x2x32xf16>
!k = tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!v = tensor<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = tensor<2x4x16xi8>
!f = tensor<5x8xf32>
!m = tensor<48xf32>
func.func @digits(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %m: !m, %scale: f32, %i: index) {
  // expected-error@+1 {{'aligned.prepare' op expected digits of shape and type 2x4x32xi8, got 'tensor<2x4x16xi8>'}}
  %0:3 = aligned.prepare %q, %k, %v scale %scale row %i policy <budget, tolerance = 0.25> outs(%d, %f, %m : !d, !f, !m)
      : !q, !k, !v -> !d, !f, !m
  return
}

// -----

!q = tensor<2x6x2x32xf16>
!k = tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!v = tensor<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = tensor<2x4x32xi16>
!f = tensor<5x8xf32>
!m = tensor<48xf32>
func.func @digits_type(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %m: !m, %scale: f32, %i: index) {
  // expected-error@+1 {{'aligned.prepare' op expected digits of shape and type 2x4x32xi8, got 'tensor<2x4x32xi16>'}}
  %0:3 = aligned.prepare %q, %k, %v scale %scale row %i policy <budget, tolerance = 0.25> outs(%d, %f, %m : !d, !f, !m)
      : !q, !k, !v -> !d, !f, !m
  return
}

// -----

// A policy that reads all bits of K wants a query of as many.

!q = tensor<2x6x2x32xf16>
!k = tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!v = tensor<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = tensor<2x4x32xi8>
!f = tensor<5x8xf32>
!m = tensor<48xf32>
func.func @digits_of_exact(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %m: !m, %scale: f32, %i: index) {
  // expected-error@+1 {{'aligned.prepare' op expected digits of shape and type 3x4x32xi8, got 'tensor<2x4x32xi8>'}}
  %0:3 = aligned.prepare %q, %k, %v scale %scale row %i policy <exact> outs(%d, %f, %m : !d, !f, !m)
      : !q, !k, !v -> !d, !f, !m
  return
}

// -----

!q = tensor<2x6x2x32xf16>
!k = tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!v = tensor<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = tensor<2x4x32xi8>
!f = tensor<4x8xf32>
!m = tensor<48xf32>
func.func @facts(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %m: !m, %scale: f32, %i: index) {
  // expected-error@+1 {{'aligned.prepare' op expected facts of shape and type 5x8xf32, got 'tensor<4x8xf32>'}}
  %0:3 = aligned.prepare %q, %k, %v scale %scale row %i policy <budget, tolerance = 0.25> outs(%d, %f, %m : !d, !f, !m)
      : !q, !k, !v -> !d, !f, !m
  return
}

// -----

!q = tensor<2x6x2x32xf16>
!k = tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!v = tensor<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = tensor<2x4x32xi8>
!f = tensor<5x8xf32>
!m = tensor<32xf32>
func.func @mean(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %m: !m, %scale: f32, %i: index) {
  // expected-error@+1 {{'aligned.prepare' op expected mean of shape and type 48xf32, got 'tensor<32xf32>'}}
  %0:3 = aligned.prepare %q, %k, %v scale %scale row %i policy <budget, tolerance = 0.25> outs(%d, %f, %m : !d, !f, !m)
      : !q, !k, !v -> !d, !f, !m
  return
}

// -----

!q = tensor<2x6x2x32xf16>
!k = tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!v = tensor<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = tensor<2x4x32xi8>
!f = tensor<5x8xf32>
func.func @prepare_outs(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %scale: f32, %i: index) {
  // expected-error@+1 {{'aligned.prepare' op expected 3 outs, got 2}}
  %0:2 = aligned.prepare %q, %k, %v scale %scale row %i policy <budget, tolerance = 0.25> outs(%d, %f : !d, !f)
      : !q, !k, !v -> !d, !f
  return
}

// -----

// What `scan` reads and writes. How many tiles there are is not known, how long they are is.

!q = tensor<2x6x2x32xf16>
!k = tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!v = tensor<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = tensor<4x32xi8>
!f = tensor<5x8xf32>
!s = tensor<?x4x64xf32>
!t = tensor<?x4x16xf32>
!part = tensor<1x2x4xf32>
func.func @scan_digits(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %s: !s, %t: !t, %part: !part, %scale: f32, %i: index) {
  // expected-error@+1 {{'aligned.scan' op expected digits of shape and type 2x4x32xi8, got 'tensor<4x32xi8>'}}
  %0:3 = aligned.scan %q, %k, %v, %d, %f scale %scale row %i split %i policy <budget, tolerance = 0.25> outs(%s, %t, %part : !s, !t, !part)
      : !q, !k, !v, !d, !f -> !s, !t, !part
  return
}

// -----

!q = tensor<2x6x2x32xf16>
!k = tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!v = tensor<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = tensor<2x4x32xi8>
!f = tensor<5x8xf64>
!s = tensor<?x4x64xf32>
!t = tensor<?x4x16xf32>
!part = tensor<1x2x4xf32>
func.func @scan_facts(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %s: !s, %t: !t, %part: !part, %scale: f32, %i: index) {
  // expected-error@+1 {{'aligned.scan' op expected facts of shape and type 5x8xf32, got 'tensor<5x8xf64>'}}
  %0:3 = aligned.scan %q, %k, %v, %d, %f scale %scale row %i split %i policy <budget, tolerance = 0.25> outs(%s, %t, %part : !s, !t, !part)
      : !q, !k, !v, !d, !f -> !s, !t, !part
  return
}

// -----

!q = tensor<2x6x2x32xf16>
!k = tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!v = tensor<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = tensor<2x4x32xi8>
!f = tensor<5x8xf32>
!s = tensor<?x4x32xf32>
!t = tensor<?x4x16xf32>
!part = tensor<1x2x4xf32>
func.func @scan_scores(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %s: !s, %t: !t, %part: !part, %scale: f32, %i: index) {
  // expected-error@+1 {{'aligned.scan' op expected scores of shape and type ?x4x64xf32, got 'tensor<?x4x32xf32>'}}
  %0:3 = aligned.scan %q, %k, %v, %d, %f scale %scale row %i split %i policy <budget, tolerance = 0.25> outs(%s, %t, %part : !s, !t, !part)
      : !q, !k, !v, !d, !f -> !s, !t, !part
  return
}

// -----

!q = tensor<2x6x2x32xf16>
!k = tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!v = tensor<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = tensor<2x4x32xi8>
!f = tensor<5x8xf32>
!s = tensor<?x4x64xf32>
!t = tensor<?x2x16xf32>
!part = tensor<1x2x4xf32>
func.func @scan_tops(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %s: !s, %t: !t, %part: !part, %scale: f32, %i: index) {
  // expected-error@+1 {{'aligned.scan' op expected tops of shape and type ?x4x16xf32, got 'tensor<?x2x16xf32>'}}
  %0:3 = aligned.scan %q, %k, %v, %d, %f scale %scale row %i split %i policy <budget, tolerance = 0.25> outs(%s, %t, %part : !s, !t, !part)
      : !q, !k, !v, !d, !f -> !s, !t, !part
  return
}

// -----

!q = tensor<2x6x2x32xf16>
!k = tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!v = tensor<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = tensor<2x4x32xi8>
!f = tensor<5x8xf32>
!s = tensor<?x4x64xf32>
!t = tensor<?x4x16xf32>
!part = tensor<2x2x4xf32>
func.func @scan_part(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %s: !s, %t: !t, %part: !part, %scale: f32, %i: index) {
  // expected-error@+1 {{'aligned.scan' op expected part of shape and type 1x2x4xf32, got 'tensor<2x2x4xf32>'}}
  %0:3 = aligned.scan %q, %k, %v, %d, %f scale %scale row %i split %i policy <budget, tolerance = 0.25> outs(%s, %t, %part : !s, !t, !part)
      : !q, !k, !v, !d, !f -> !s, !t, !part
  return
}

// -----

!q = tensor<2x6x2x32xf16>
!k = tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!v = tensor<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = tensor<2x4x32xi8>
!f = tensor<5x8xf32>
!s = tensor<?x4x64xf32>
!t = tensor<?x4x16xf32>
!part = tensor<1x2x4xf32>
!m = tensor<48xf32>
func.func @scan_outs(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %s: !s, %t: !t, %part: !part, %m: !m, %scale: f32, %i: index) {
  // expected-error@+1 {{'aligned.scan' op expected 3 outs, got 4}}
  %0:4 = aligned.scan %q, %k, %v, %d, %f scale %scale row %i split %i policy <budget, tolerance = 0.25> outs(%s, %t, %part, %m : !s, !t, !part, !m)
      : !q, !k, !v, !d, !f -> !s, !t, !part, !m
  return
}

// -----

// What `attend` reads: what the row's scans wrote, of all splits their parts.

!q = tensor<2x6x2x32xf16>
!k = tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!v = tensor<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = tensor<3x4x32xi8>
!f = tensor<5x8xf32>
!m = tensor<48xf32>
!s = tensor<?x4x64xf32>
!t = tensor<?x4x16xf32>
!parts = tensor<?x2x4xf32>
!a = tensor<1x2x2x48xf32>
!x = tensor<1x2x2xf32>
!l = tensor<1x2x2xf32>
func.func @attend_digits(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %m: !m, %s: !s, %t: !t, %parts: !parts, %a: !a, %x: !x, %l: !l, %i: index) {
  // expected-error@+1 {{'aligned.attend' op expected digits of shape and type 2x4x32xi8, got 'tensor<3x4x32xi8>'}}
  %0:3 = aligned.attend %q, %k, %v, %d, %f, %m, %s, %t, %parts row %i split %i policy <budget, tolerance = 0.25> outs(%a, %x, %l : !a, !x, !l)
      : !q, !k, !v, !d, !f, !m, !s, !t, !parts -> !a, !x, !l
  return
}

// -----

!q = tensor<2x6x2x32xf16>
!k = tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!v = tensor<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = tensor<2x4x32xi8>
!f = tensor<5x4xf32>
!m = tensor<48xf32>
!s = tensor<?x4x64xf32>
!t = tensor<?x4x16xf32>
!parts = tensor<?x2x4xf32>
!a = tensor<1x2x2x48xf32>
!x = tensor<1x2x2xf32>
!l = tensor<1x2x2xf32>
func.func @attend_facts(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %m: !m, %s: !s, %t: !t, %parts: !parts, %a: !a, %x: !x, %l: !l, %i: index) {
  // expected-error@+1 {{'aligned.attend' op expected facts of shape and type 5x8xf32, got 'tensor<5x4xf32>'}}
  %0:3 = aligned.attend %q, %k, %v, %d, %f, %m, %s, %t, %parts row %i split %i policy <budget, tolerance = 0.25> outs(%a, %x, %l : !a, !x, !l)
      : !q, !k, !v, !d, !f, !m, !s, !t, !parts -> !a, !x, !l
  return
}

// -----

!q = tensor<2x6x2x32xf16>
!k = tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!v = tensor<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = tensor<2x4x32xi8>
!f = tensor<5x8xf32>
!m = tensor<1x48xf32>
!s = tensor<?x4x64xf32>
!t = tensor<?x4x16xf32>
!parts = tensor<?x2x4xf32>
!a = tensor<1x2x2x48xf32>
!x = tensor<1x2x2xf32>
!l = tensor<1x2x2xf32>
func.func @attend_mean(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %m: !m, %s: !s, %t: !t, %parts: !parts, %a: !a, %x: !x, %l: !l, %i: index) {
  // expected-error@+1 {{'aligned.attend' op expected mean of shape and type 48xf32, got 'tensor<1x48xf32>'}}
  %0:3 = aligned.attend %q, %k, %v, %d, %f, %m, %s, %t, %parts row %i split %i policy <budget, tolerance = 0.25> outs(%a, %x, %l : !a, !x, !l)
      : !q, !k, !v, !d, !f, !m, !s, !t, !parts -> !a, !x, !l
  return
}

// -----

!q = tensor<2x6x2x32xf16>
!k = tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!v = tensor<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = tensor<2x4x32xi8>
!f = tensor<5x8xf32>
!m = tensor<48xf32>
!s = tensor<?x4x64xf16>
!t = tensor<?x4x16xf32>
!parts = tensor<?x2x4xf32>
!a = tensor<1x2x2x48xf32>
!x = tensor<1x2x2xf32>
!l = tensor<1x2x2xf32>
func.func @attend_scores(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %m: !m, %s: !s, %t: !t, %parts: !parts, %a: !a, %x: !x, %l: !l, %i: index) {
  // expected-error@+1 {{'aligned.attend' op expected scores of shape and type ?x4x64xf32, got 'tensor<?x4x64xf16>'}}
  %0:3 = aligned.attend %q, %k, %v, %d, %f, %m, %s, %t, %parts row %i split %i policy <budget, tolerance = 0.25> outs(%a, %x, %l : !a, !x, !l)
      : !q, !k, !v, !d, !f, !m, !s, !t, !parts -> !a, !x, !l
  return
}

// -----

!q = tensor<2x6x2x32xf16>
!k = tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!v = tensor<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = tensor<2x4x32xi8>
!f = tensor<5x8xf32>
!m = tensor<48xf32>
!s = tensor<?x4x64xf32>
!t = tensor<?x4x8xf32>
!parts = tensor<?x2x4xf32>
!a = tensor<1x2x2x48xf32>
!x = tensor<1x2x2xf32>
!l = tensor<1x2x2xf32>
func.func @attend_tops(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %m: !m, %s: !s, %t: !t, %parts: !parts, %a: !a, %x: !x, %l: !l, %i: index) {
  // expected-error@+1 {{'aligned.attend' op expected tops of shape and type ?x4x16xf32, got 'tensor<?x4x8xf32>'}}
  %0:3 = aligned.attend %q, %k, %v, %d, %f, %m, %s, %t, %parts row %i split %i policy <budget, tolerance = 0.25> outs(%a, %x, %l : !a, !x, !l)
      : !q, !k, !v, !d, !f, !m, !s, !t, !parts -> !a, !x, !l
  return
}

// -----

!q = tensor<2x6x2x32xf16>
!k = tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!v = tensor<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = tensor<2x4x32xi8>
!f = tensor<5x8xf32>
!m = tensor<48xf32>
!s = tensor<?x4x64xf32>
!t = tensor<?x4x16xf32>
!parts = tensor<?x1x4xf32>
!a = tensor<1x2x2x48xf32>
!x = tensor<1x2x2xf32>
!l = tensor<1x2x2xf32>
func.func @attend_parts(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %m: !m, %s: !s, %t: !t, %parts: !parts, %a: !a, %x: !x, %l: !l, %i: index) {
  // expected-error@+1 {{'aligned.attend' op expected parts of shape and type ?x2x4xf32, got 'tensor<?x1x4xf32>'}}
  %0:3 = aligned.attend %q, %k, %v, %d, %f, %m, %s, %t, %parts row %i split %i policy <budget, tolerance = 0.25> outs(%a, %x, %l : !a, !x, !l)
      : !q, !k, !v, !d, !f, !m, !s, !t, !parts -> !a, !x, !l
  return
}

// -----

// What it writes: the softmax state of the split, for the query heads of one kv head.

!q = tensor<2x6x2x32xf16>
!k = tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!v = tensor<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = tensor<2x4x32xi8>
!f = tensor<5x8xf32>
!m = tensor<48xf32>
!s = tensor<?x4x64xf32>
!t = tensor<?x4x16xf32>
!parts = tensor<?x2x4xf32>
!a = tensor<1x2x2x32xf32>
!x = tensor<1x2x2xf32>
!l = tensor<1x2x2xf32>
func.func @acc(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %m: !m, %s: !s, %t: !t, %parts: !parts, %a: !a, %x: !x, %l: !l, %i: index) {
  // expected-error@+1 {{'aligned.attend' op expected acc of shape and type 1x2x2x48xf32, got 'tensor<1x2x2x32xf32>'}}
  %0:3 = aligned.attend %q, %k, %v, %d, %f, %m, %s, %t, %parts row %i split %i policy <budget, tolerance = 0.25> outs(%a, %x, %l : !a, !x, !l)
      : !q, !k, !v, !d, !f, !m, !s, !t, !parts -> !a, !x, !l
  return
}

// -----

!q = tensor<2x6x2x32xf16>
!k = tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!v = tensor<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = tensor<2x4x32xi8>
!f = tensor<5x8xf32>
!m = tensor<48xf32>
!s = tensor<?x4x64xf32>
!t = tensor<?x4x16xf32>
!parts = tensor<?x2x4xf32>
!a = tensor<1x2x2x48xf32>
!x = tensor<1x6x2xf32>
!l = tensor<1x2x2xf32>
func.func @max(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %m: !m, %s: !s, %t: !t, %parts: !parts, %a: !a, %x: !x, %l: !l, %i: index) {
  // expected-error@+1 {{'aligned.attend' op expected max of shape and type 1x2x2xf32, got 'tensor<1x6x2xf32>'}}
  %0:3 = aligned.attend %q, %k, %v, %d, %f, %m, %s, %t, %parts row %i split %i policy <budget, tolerance = 0.25> outs(%a, %x, %l : !a, !x, !l)
      : !q, !k, !v, !d, !f, !m, !s, !t, !parts -> !a, !x, !l
  return
}

// -----

!q = tensor<2x6x2x32xf16>
!k = tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!v = tensor<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = tensor<2x4x32xi8>
!f = tensor<5x8xf32>
!m = tensor<48xf32>
!s = tensor<?x4x64xf32>
!t = tensor<?x4x16xf32>
!parts = tensor<?x2x4xf32>
!a = tensor<1x2x2x48xf32>
!x = tensor<1x2x2xf32>
!l = tensor<2x2xf32>
func.func @sum(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %m: !m, %s: !s, %t: !t, %parts: !parts, %a: !a, %x: !x, %l: !l, %i: index) {
  // expected-error@+1 {{'aligned.attend' op expected sum of shape and type 1x2x2xf32, got 'tensor<2x2xf32>'}}
  %0:3 = aligned.attend %q, %k, %v, %d, %f, %m, %s, %t, %parts row %i split %i policy <budget, tolerance = 0.25> outs(%a, %x, %l : !a, !x, !l)
      : !q, !k, !v, !d, !f, !m, !s, !t, !parts -> !a, !x, !l
  return
}

// -----

!q = tensor<2x6x2x32xf16>
!k = tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!v = tensor<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = tensor<2x4x32xi8>
!f = tensor<5x8xf32>
!m = tensor<48xf32>
!s = tensor<?x4x64xf32>
!t = tensor<?x4x16xf32>
!parts = tensor<?x2x4xf32>
!a = tensor<1x2x2x48xf32>
!x = tensor<1x2x2xf32>
!l = tensor<1x2x2xf32>
!c = tensor<1x2x2x6xf32>
func.func @certificate(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %m: !m, %s: !s, %t: !t, %parts: !parts, %a: !a, %x: !x, %l: !l, %c: !c, %i: index) {
  // expected-error@+1 {{'aligned.attend' op expected certificate of shape and type 1x2x2x8xf32, got 'tensor<1x2x2x6xf32>'}}
  %0:4 = aligned.attend %q, %k, %v, %d, %f, %m, %s, %t, %parts row %i split %i policy <budget, tolerance = 0.25> outs(%a, %x, %l, %c : !a, !x, !l, !c)
      : !q, !k, !v, !d, !f, !m, !s, !t, !parts -> !a, !x, !l, !c
  return
}

// -----

!q = tensor<2x6x2x32xf16>
!k = tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!v = tensor<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = tensor<2x4x32xi8>
!f = tensor<5x8xf32>
!m = tensor<48xf32>
!s = tensor<?x4x64xf32>
!t = tensor<?x4x16xf32>
!parts = tensor<?x2x4xf32>
!a = tensor<1x2x2x48xf32>
!x = tensor<1x2x2xf32>
func.func @few_outs(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %m: !m, %s: !s, %t: !t, %parts: !parts, %a: !a, %x: !x, %i: index) {
  // expected-error@+1 {{'aligned.attend' op expected 3 or one more outs, got 2}}
  %0:2 = aligned.attend %q, %k, %v, %d, %f, %m, %s, %t, %parts row %i split %i policy <budget, tolerance = 0.25> outs(%a, %x : !a, !x)
      : !q, !k, !v, !d, !f, !m, !s, !t, !parts -> !a, !x
  return
}

// -----

!q = tensor<2x6x2x32xf16>
!k = tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!v = tensor<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = tensor<2x4x32xi8>
!f = tensor<5x8xf32>
!m = tensor<48xf32>
!s = tensor<?x4x64xf32>
!t = tensor<?x4x16xf32>
!parts = tensor<?x2x4xf32>
!a = tensor<1x2x2x48xf32>
!x = tensor<1x2x2xf32>
!l = tensor<1x2x2xf32>
!c = tensor<1x2x2x8xf32>
func.func @many_outs(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %m: !m, %s: !s, %t: !t, %parts: !parts, %a: !a, %x: !x, %l: !l, %c: !c, %i: index) {
  // expected-error@+1 {{'aligned.attend' op expected 3 or one more outs, got 5}}
  %0:5 = aligned.attend %q, %k, %v, %d, %f, %m, %s, %t, %parts row %i split %i policy <budget, tolerance = 0.25> outs(%a, %x, %l, %c, %m : !a, !x, !l, !c, !m)
      : !q, !k, !v, !d, !f, !m, !s, !t, !parts -> !a, !x, !l, !c, !m
  return
}

// -----

// P8: a mask by numbers and sinks are of all query heads, not those of the row.

!q = tensor<2x6x2x32xf16>
!k = tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!v = tensor<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = tensor<2x4x32xi8>
!f = tensor<5x8xf32>
!s = tensor<?x4x64xf32>
!t = tensor<?x4x16xf32>
!part = tensor<1x2x4xf32>
func.func @scan_mask(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %s: !s, %t: !t, %part: !part, %mask: tensor<2x2x2x?xf32>, %scale: f32, %i: index) {
  // expected-error@+1 {{'aligned.scan' op expected attn_mask dimension 1 (q_heads) to be 6 or 1, got 2}}
  %0:3 = aligned.scan %q, %k, %v, %d, %f scale %scale row %i split %i attn_mask %mask : tensor<2x2x2x?xf32> policy <budget, tolerance = 0.25> outs(%s, %t, %part : !s, !t, !part)
      : !q, !k, !v, !d, !f -> !s, !t, !part
  return
}

// -----

!q = tensor<2x6x2x32xf16>
!k = tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!v = tensor<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = tensor<2x4x32xi8>
!f = tensor<5x8xf32>
!s = tensor<?x4x64xf32>
!t = tensor<?x4x16xf32>
!part = tensor<1x2x4xf32>
func.func @scan_mask_dynamic(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %s: !s, %t: !t, %part: !part, %mask: tensor<2x6x?x?xf32>, %scale: f32, %i: index) {
  // expected-error@+1 {{'aligned.scan' op expected a static queries in attn_mask, got 'tensor<2x6x?x?xf32>'}}
  %0:3 = aligned.scan %q, %k, %v, %d, %f scale %scale row %i split %i attn_mask %mask : tensor<2x6x?x?xf32> policy <budget, tolerance = 0.25> outs(%s, %t, %part : !s, !t, !part)
      : !q, !k, !v, !d, !f -> !s, !t, !part
  return
}

// -----

!q = tensor<2x6x2x32xf16>
!k = tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!v = tensor<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = tensor<2x4x32xi8>
!f = tensor<5x8xf32>
!m = tensor<48xf32>
!s = tensor<?x4x64xf32>
!t = tensor<?x4x16xf32>
!parts = tensor<?x2x4xf32>
!a = tensor<1x2x2x48xf32>
!x = tensor<1x2x2xf32>
func.func @attend_mask(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %m: !m, %s: !s, %t: !t, %parts: !parts, %a: !a, %x: !x, %extra: tensor<3x1x1x?xi1>, %i: index) {
  // expected-error@+1 {{'aligned.attend' op expected attn_mask dimension 0 (batch) to be 2 or 1, got 3}}
  %0:3 = aligned.attend %q, %k, %v, %d, %f, %m, %s, %t, %parts row %i split %i attn_mask %extra : tensor<3x1x1x?xi1> policy <budget, tolerance = 0.25> outs(%a, %x, %x : !a, !x, !x)
      : !q, !k, !v, !d, !f, !m, !s, !t, !parts -> !a, !x, !x
  return
}

// -----

!q = tensor<2x6x2x32xf16>
!k = tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!v = tensor<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = tensor<2x4x32xi8>
!f = tensor<5x8xf32>
!m = tensor<48xf32>
!s = tensor<?x4x64xf32>
!t = tensor<?x4x16xf32>
!parts = tensor<?x2x4xf32>
!a = tensor<1x2x2x48xf32>
!x = tensor<1x2x2xf32>
func.func @attend_sinks(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %m: !m, %s: !s, %t: !t, %parts: !parts, %a: !a, %x: !x, %extra: tensor<2xf32>, %i: index) {
  // expected-error@+1 {{'aligned.attend' op expected a sink logit for each of 6 query heads, got 2}}
  %0:3 = aligned.attend %q, %k, %v, %d, %f, %m, %s, %t, %parts row %i split %i sink_logits %extra : tensor<2xf32> policy <budget, tolerance = 0.25> outs(%a, %x, %x : !a, !x, !x)
      : !q, !k, !v, !d, !f, !m, !s, !t, !parts -> !a, !x, !x
  return
}

// -----

// Buffers are held to the same.

!q = memref<2x6x2x32xf16>
!k = memref<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!v = memref<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
func.func @buffer(%q: !q, %k: !k, %v: !v, %scale: f32, %i: index, %d: memref<2x4x32xi8>, %f: memref<5x8xf32>, %m: memref<?xf64>) {
  // expected-error@+1 {{'aligned.prepare' op expected mean of shape and type 48xf32, got 'memref<?xf64>'}}
  aligned.prepare %q, %k, %v scale %scale row %i policy <budget, tolerance = 0.25> outs(%d, %f, %m : memref<2x4x32xi8>, memref<5x8xf32>, memref<?xf64>) : !q, !k, !v
  return
}

// -----

!q = memref<2x6x2x32xf16>
!k = memref<2x3x?x32xf16>
!v = memref<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
func.func @dense_buffer(%q: !q, %k: !k, %v: !v, %scale: f32, %i: index, %d: memref<2x4x32xi8>, %f: memref<5x8xf32>, %m: memref<48xf32>) {
  // expected-error@+1 {{'aligned.prepare' op expected a key in fixed planes of role 'key', got 'memref<2x3x?x32xf16>'}}
  aligned.prepare %q, %k, %v scale %scale row %i policy <budget, tolerance = 0.25> outs(%d, %f, %m : memref<2x4x32xi8>, memref<5x8xf32>, memref<48xf32>) : !q, !k, !v
  return
}

// -----

// A result for each tensor that is written, none for a buffer.

!q = tensor<2x6x2x32xf16>
!k = tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!v = tensor<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
func.func @results(%q: !q, %k: !k, %v: !v, %scale: f32, %i: index, %d: tensor<2x4x32xi8>, %f: tensor<5x8xf32>, %m: tensor<48xf32>) {
  // expected-error@+1 {{'aligned.prepare' op expected the number of tensor results (2) to be equal to the number of output tensors (3)}}
  %0:2 = aligned.prepare %q, %k, %v scale %scale row %i policy <budget, tolerance = 0.25> outs(%d, %f, %m : tensor<2x4x32xi8>, tensor<5x8xf32>, tensor<48xf32>) : !q, !k, !v
      -> tensor<2x4x32xi8>, tensor<5x8xf32>
  return
}
