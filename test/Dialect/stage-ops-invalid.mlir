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
  // expected-error@+1 {{'aligned.prepare' op expected a key in fixed planes, got 'tensor<2x3x?x32xf16>'}}
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
  // expected-error@+1 {{'aligned.scan' op expected a key in fixed planes, got 'tensor<2x3x?x32xf16, #aligned.planes<float<8, 4, 4>, key>>'}}
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
  // expected-error@+1 {{'aligned.attend' op expected the key's encoding to have role 'key', got 'value'}}
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
  // expected-error@+1 {{'aligned.prepare' op expected the value's encoding to have role 'value', got 'key'}}
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
  // expected-error@+1 {{'aligned.scan' op expected a value in fixed planes, got 'tensor<2x3x?x48xf16>'}}
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
  // expected-error@+1 {{'aligned.prepare' op expected query and key to agree in batch, got 1 and 2}}
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
  // expected-error@+1 {{'aligned.prepare' op expected key and value to agree in batch, got 2 and 1}}
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
  // expected-error@+1 {{'aligned.prepare' op expected key and value to agree in kv_heads, got 3 and 2}}
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
  // expected-error@+1 {{'aligned.prepare' op expected key and value to agree in tokens, got 64 and 65}}
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
  // expected-error@+1 {{'aligned.prepare' op expected policies of one kind, got 'budget' and 'exact'}}
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
  // expected-error@+1 {{'aligned.prepare' op expected a 'float' format under policy 'alignedkv', got key of format 'fixed'}}
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

!q = tensor<2x6x2x32xf16>
!k = tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!v = tensor<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = tensor<2x4x32xi8>
!f = tensor<5x8xf32>
!m = tensor<48xf32>
func.func @factor(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %m: !m, %scale: f32, %i: index) {
  // expected-error@+1 {{'aligned.prepare' op expected 'tolerance_factor' only with policy 'budget', got 'exact'}}
  %0:3 = aligned.prepare %q, %k, %v scale %scale row %i policy <exact> tolerance_factor %scale outs(%d, %f, %m : !d, !f, !m) : !q, !k, !v -> !d, !f, !m
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
  // expected-error@+1 {{'aligned.prepare' op expected static heads, queries and head_dim, got 'tensor<2x?x2x32xf16>' and 'tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>'}}
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
  // expected-error@+1 {{'aligned.scan' op expected static heads, queries and head_dim, got 'tensor<2x6x?x32xf16>' and 'tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>'}}
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
  // expected-error@+1 {{'aligned.attend' op expected query heads to be a multiple of kv heads, got 7 and 3}}
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
  // expected-error@+1 {{'aligned.prepare' op expected query heads to be a multiple of kv heads, got 6 and 0}}
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
  // expected-error@+1 {{'aligned.scan' op expected query and key to agree in head_dim, got 48 and 32}}
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
!part = tensor<2x3x4xf32>
func.func @scan_part(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %s: !s, %t: !t, %part: !part, %scale: f32, %i: index) {
  // expected-error@+1 {{'aligned.scan' op expected part of shape and type ?x2x4xf32, got 'tensor<2x3x4xf32>'}}
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
!x = tensor<3x2x2xf32>
!l = tensor<1x2x2xf32>
func.func @splits(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %m: !m, %s: !s, %t: !t, %parts: !parts, %a: !a, %x: !x, %l: !l, %i: index) {
  // expected-error@+1 {{'aligned.attend' op expected max of shape and type 1x2x2xf32, got 'tensor<3x2x2xf32>'}}
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
  // expected-error@+1 {{'aligned.prepare' op expected a key in fixed planes, got 'memref<2x3x?x32xf16>'}}
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

// -----

// A12: stages ask of a softcap what attention asks.

!q = tensor<2x6x2x32xf16>
!k = tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!v = tensor<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = tensor<2x4x32xi8>
!f = tensor<5x8xf32>
!s = tensor<?x4x64xf32>
!t = tensor<?x4x16xf32>
!part = tensor<1x2x4xf32>
func.func @no_softcap(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %s: !s, %t: !t, %part: !part, %scale: f32, %i: index) {
  // expected-error@+1 {{'aligned.scan' op expected a softcap from 1e-30 to 1e+30, got 0}}
  %0:3 = aligned.scan %q, %k, %v, %d, %f scale %scale row %i split %i softcap 0.0 policy <budget, tolerance = 0.25> outs(%s, %t, %part : !s, !t, !part)
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
func.func @negative_softcap(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %m: !m, %s: !s, %t: !t, %parts: !parts, %a: !a, %x: !x, %scale: f32, %i: index) {
  // expected-error@+1 {{'aligned.attend' op expected a softcap from 1e-30 to 1e+30, got -50}}
  %0:3 = aligned.attend %q, %k, %v, %d, %f, %m, %s, %t, %parts row %i split %i softcap -50.0 policy <budget, tolerance = 0.25> outs(%a, %x, %x : !a, !x, !x)
      : !q, !k, !v, !d, !f, !m, !s, !t, !parts -> !a, !x, !x
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
func.func @infinite_softcap(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %s: !s, %t: !t, %part: !part, %scale: f32, %i: index) {
  // expected-error@+1 {{'aligned.scan' op expected a softcap from 1e-30 to 1e+30, got inf}}
  %0:3 = aligned.scan %q, %k, %v, %d, %f scale %scale row %i split %i softcap 0x7FF0000000000000 policy <budget, tolerance = 0.25> outs(%s, %t, %part : !s, !t, !part)
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
func.func @nan_softcap(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %m: !m, %s: !s, %t: !t, %parts: !parts, %a: !a, %x: !x, %scale: f32, %i: index) {
  // expected-error@+1 {{'aligned.attend' op expected a softcap from 1e-30 to 1e+30, got nan}}
  %0:3 = aligned.attend %q, %k, %v, %d, %f, %m, %s, %t, %parts row %i split %i softcap 0x7FF8000000000000 policy <budget, tolerance = 0.25> outs(%a, %x, %x : !a, !x, !x)
      : !q, !k, !v, !d, !f, !m, !s, !t, !parts -> !a, !x, !x
  return
}

// -----

// A13: tensors all, or buffers.

!q = memref<2x6x2x32xf16>
!k = tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!v = tensor<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = tensor<2x4x32xi8>
!f = tensor<5x8xf32>
!m = tensor<48xf32>
func.func @mixed_query(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %m: !m, %scale: f32, %i: index) {
  // expected-error@+1 {{'aligned.prepare' op expected tensors or buffers, got both: 'tensor<48xf32>' and 'memref<2x6x2x32xf16>'}}
  %0:3 = aligned.prepare %q, %k, %v scale %scale row %i policy <budget, tolerance = 0.25> outs(%d, %f, %m : !d, !f, !m)
      : !q, !k, !v -> !d, !f, !m
  return
}

// -----

!q = tensor<2x6x2x32xf16>
!k = tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!v = tensor<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = tensor<2x4x32xi8>
!f = memref<5x8xf32>
!s = tensor<?x4x64xf32>
!t = tensor<?x4x16xf32>
!part = tensor<1x2x4xf32>
func.func @mixed_facts(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %s: !s, %t: !t, %part: !part, %scale: f32, %i: index) {
  // expected-error@+1 {{'aligned.scan' op expected tensors or buffers, got both: 'tensor<1x2x4xf32>' and 'memref<5x8xf32>'}}
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
!m = tensor<48xf32>
!s = tensor<?x4x64xf32>
!t = tensor<?x4x16xf32>
!parts = tensor<?x2x4xf32>
!a = memref<1x2x2x48xf32>
!x = tensor<1x2x2xf32>
func.func @mixed_outs(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %m: !m, %s: !s, %t: !t, %parts: !parts, %a: !a, %x: !x, %scale: f32, %i: index) {
  // expected-error@+1 {{'aligned.attend' op expected tensors or buffers, got both: 'tensor<1x2x2xf32>' and 'memref<1x2x2x48xf32>'}}
  %0:2 = aligned.attend %q, %k, %v, %d, %f, %m, %s, %t, %parts row %i split %i policy <budget, tolerance = 0.25> outs(%a, %x, %x : !a, !x, !x)
      : !q, !k, !v, !d, !f, !m, !s, !t, !parts -> !x, !x
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
func.func @mixed_mask(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %s: !s, %t: !t, %part: !part, %mask: memref<1x1x1x?xi1>, %scale: f32, %i: index) {
  // expected-error@+1 {{'aligned.scan' op expected tensors or buffers, got both: 'tensor<1x2x4xf32>' and 'memref<1x1x1x?xi1>'}}
  %0:3 = aligned.scan %q, %k, %v, %d, %f scale %scale row %i split %i attn_mask %mask : memref<1x1x1x?xi1> policy <budget, tolerance = 0.25> outs(%s, %t, %part : !s, !t, !part)
      : !q, !k, !v, !d, !f -> !s, !t, !part
  return
}

// -----

// Kernels read queries of 16 and 32 bits.

!q = tensor<2x6x2x32xi8>
!k = tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!v = tensor<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = tensor<2x4x32xi8>
!f = tensor<5x8xf32>
!m = tensor<48xf32>
func.func @integer_query(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %m: !m, %scale: f32, %i: index) {
  // expected-error@+1 {{'aligned.prepare' op expected a query of f16, bf16 or f32, got 'tensor<2x6x2x32xi8>'}}
  %0:3 = aligned.prepare %q, %k, %v scale %scale row %i policy <budget, tolerance = 0.25> outs(%d, %f, %m : !d, !f, !m)
      : !q, !k, !v -> !d, !f, !m
  return
}

// -----

!q = tensor<2x6x2x32xf64>
!k = tensor<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!v = tensor<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = tensor<2x4x32xi8>
!f = tensor<5x8xf32>
!s = tensor<?x4x64xf32>
!t = tensor<?x4x16xf32>
!part = tensor<1x2x4xf32>
func.func @double_query(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %s: !s, %t: !t, %part: !part, %scale: f32, %i: index) {
  // expected-error@+1 {{'aligned.scan' op expected a query of f16, bf16 or f32, got 'tensor<2x6x2x32xf64>'}}
  %0:3 = aligned.scan %q, %k, %v, %d, %f scale %scale row %i split %i policy <budget, tolerance = 0.25> outs(%s, %t, %part : !s, !t, !part)
      : !q, !k, !v, !d, !f -> !s, !t, !part
  return
}

// -----

!q = memref<2x6x2x32xi16>
!k = memref<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!v = memref<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = memref<2x4x32xi8>
!f = memref<5x8xf32>
!m = memref<48xf32>
!s = memref<?x4x64xf32>
!t = memref<?x4x16xf32>
!parts = memref<?x2x4xf32>
!a = memref<1x2x2x48xf32>
!x = memref<1x2x2xf32>
func.func @short_query(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %m: !m, %s: !s, %t: !t, %parts: !parts, %a: !a, %x: !x, %scale: f32, %i: index) {
  // expected-error@+1 {{'aligned.attend' op expected a query of f16, bf16 or f32, got 'memref<2x6x2x32xi16>'}}
  aligned.attend %q, %k, %v, %d, %f, %m, %s, %t, %parts row %i split %i policy <budget, tolerance = 0.25> outs(%a, %x, %x : !a, !x, !x)
      : !q, !k, !v, !d, !f, !m, !s, !t, !parts
  return
}

// -----

// A cache that is a buffer is held to what its encoding asks of tensors.

!q = memref<2x6x2x32xf16>
!k = memref<2x3x?x32xi8, #aligned.planes<fixed<4, 4, 8>, key>>
!v = memref<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = memref<2x4x32xi8>
!f = memref<5x8xf32>
!m = memref<48xf32>
func.func @integer_key(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %m: !m, %scale: f32, %i: index) {
  // expected-error@+1 {{'aligned.prepare' op expected f16, bf16 or f32 elements in a tensor packed as fixed<4, 4, 8>, got 'i8'}}
  aligned.prepare %q, %k, %v scale %scale row %i policy <budget, tolerance = 0.25> outs(%d, %f, %m : !d, !f, !m)
      : !q, !k, !v
  return
}

// -----

!q = memref<2x6x2x24xf16>
!k = memref<2x3x?x24xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!v = memref<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = memref<2x4x24xi8>
!f = memref<5x8xf32>
!m = memref<48xf32>
func.func @odd_key(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %m: !m, %scale: f32, %i: index) {
  // expected-error@+1 {{'aligned.prepare' op expected a static head_dim that is a multiple of 16, at most 256, in a packed tensor, got 24}}
  aligned.prepare %q, %k, %v scale %scale row %i policy <budget, tolerance = 0.25> outs(%d, %f, %m : !d, !f, !m)
      : !q, !k, !v
  return
}

// -----

// A16: kernels take arrays without gaps.

!q = memref<2x6x2x32xf16, strided<[768, 128, 64, 1]>>
!k = memref<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!v = memref<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = memref<2x4x32xi8>
!f = memref<5x8xf32>
!m = memref<48xf32>
func.func @strided_query(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %m: !m, %scale: f32, %i: index) {
  // expected-error@+1 {{'aligned.prepare' op expected query to be contiguous, got 'memref<2x6x2x32xf16, strided<[768, 128, 64, 1]>>'}}
  aligned.prepare %q, %k, %v scale %scale row %i policy <budget, tolerance = 0.25> outs(%d, %f, %m : !d, !f, !m)
      : !q, !k, !v
  return
}

// -----

!q = memref<2x6x1x32xf16>
!k = memref<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!v = memref<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = memref<2x2x32xi8>
!f = memref<3x8xf32>
!s = memref<?x2x64xf32>
!t = memref<?x2x16xf32>
!part = memref<1x2x2xf32>
func.func @strided_mask(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %s: !s, %t: !t, %part: !part, %mask: memref<2x6x1x?xf32, strided<[?, ?, ?, 1], offset: ?>>, %scale: f32, %i: index) {
  // expected-error@+1 {{'aligned.scan' op expected attn_mask to be contiguous, got 'memref<2x6x1x?xf32, strided<[?, ?, ?, 1], offset: ?>>'}}
  aligned.scan %q, %k, %v, %d, %f scale %scale row %i split %i attn_mask %mask : memref<2x6x1x?xf32, strided<[?, ?, ?, 1], offset: ?>> policy <budget, tolerance = 0.25> outs(%s, %t, %part : !s, !t, !part)
      : !q, !k, !v, !d, !f
  return
}

// -----

!q = memref<2x6x2x32xf16>
!k = memref<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!v = memref<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = memref<2x4x32xi8>
!f = memref<5x8xf32>
!m = memref<48xf32>
!s = memref<?x4x64xf32>
!t = memref<?x4x16xf32>
!parts = memref<?x2x4xf32>
!a = memref<1x2x2x48xf32>
!x = memref<1x2x2xf32>
func.func @strided_sinks(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %m: !m, %s: !s, %t: !t, %parts: !parts, %a: !a, %x: !x, %sinks: memref<6xf32, strided<[2]>>, %scale: f32, %i: index) {
  // expected-error@+1 {{'aligned.attend' op expected sink_logits to be contiguous, got 'memref<6xf32, strided<[2]>>'}}
  aligned.attend %q, %k, %v, %d, %f, %m, %s, %t, %parts row %i split %i sink_logits %sinks : memref<6xf32, strided<[2]>> policy <budget, tolerance = 0.25> outs(%a, %x, %x : !a, !x, !x)
      : !q, !k, !v, !d, !f, !m, !s, !t, !parts
  return
}

// -----

!q = memref<2x6x2x32xf16>
!k = memref<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!v = memref<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = memref<2x4x32xi8>
!f = memref<5x8xf32>
!s = memref<?x4x64xf32, strided<[512, 128, 1], offset: ?>>
!t = memref<?x4x16xf32>
!part = memref<1x2x4xf32>
func.func @strided_scores(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %s: !s, %t: !t, %part: !part, %scale: f32, %i: index) {
  // expected-error@+1 {{'aligned.scan' op expected scores to be contiguous, got 'memref<?x4x64xf32, strided<[512, 128, 1], offset: ?>>'}}
  aligned.scan %q, %k, %v, %d, %f scale %scale row %i split %i policy <budget, tolerance = 0.25> outs(%s, %t, %part : !s, !t, !part)
      : !q, !k, !v, !d, !f
  return
}

// -----

!q = memref<2x6x2x32xf16>
!k = memref<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!v = memref<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = memref<2x4x32xi8>
!f = memref<5x8xf32>
!m = memref<48xf32>
!s = memref<?x4x64xf32, strided<[512, 128, 1], offset: ?>>
!t = memref<?x4x16xf32>
!parts = memref<?x2x4xf32>
!a = memref<1x2x2x48xf32>
!x = memref<1x2x2xf32>
func.func @strided_scores_in(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %m: !m, %s: !s, %t: !t, %parts: !parts, %a: !a, %x: !x, %scale: f32, %i: index) {
  // expected-error@+1 {{'aligned.attend' op expected scores to be contiguous, got 'memref<?x4x64xf32, strided<[512, 128, 1], offset: ?>>'}}
  aligned.attend %q, %k, %v, %d, %f, %m, %s, %t, %parts row %i split %i policy <budget, tolerance = 0.25> outs(%a, %x, %x : !a, !x, !x)
      : !q, !k, !v, !d, !f, !m, !s, !t, !parts
  return
}

// -----

!q = memref<2x6x2x32xf16>
!k = memref<2x3x?x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!v = memref<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = memref<2x4x32xi8>
!f = memref<5x8xf32>
!m = memref<48xf32>
!s = memref<?x4x64xf32>
!t = memref<?x4x16xf32>
!parts = memref<?x2x4xf32>
!a = memref<1x2x2x48xf32, affine_map<(a, b, c, d) -> (a, b, d, c)>>
!x = memref<1x2x2xf32>
func.func @transposed_acc(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %m: !m, %s: !s, %t: !t, %parts: !parts, %a: !a, %x: !x, %scale: f32, %i: index) {
  // expected-error@+1 {{'aligned.attend' op expected acc to be contiguous, got 'memref<1x2x2x48xf32, affine_map<(d0, d1, d2, d3) -> (d0, d1, d3, d2)>>'}}
  aligned.attend %q, %k, %v, %d, %f, %m, %s, %t, %parts row %i split %i policy <budget, tolerance = 0.25> outs(%a, %x, %x : !a, !x, !x)
      : !q, !k, !v, !d, !f, !m, !s, !t, !parts
  return
}

// -----

!q = memref<2x6x2x32xf16>
!k = memref<2x3x?x32xf16, strided<[?, ?, 32, 1], offset: ?>, #aligned.planes<fixed<4, 4, 8>, key>>
!v = memref<2x3x?x48xf16, #aligned.planes<fixed<8, 8>, value>>
!d = memref<2x4x32xi8>
!f = memref<5x8xf32>
!s = memref<?x4x64xf32>
!t = memref<?x4x16xf32>
!part = memref<1x2x4xf32>
func.func @cache_layout(%q: !q, %k: !k, %v: !v, %d: !d, %f: !f, %s: !s, %t: !t, %part: !part, %scale: f32, %i: index) {
  // expected-error@+1 {{'aligned.scan' op expected a packed key without a layout, got 'memref<2x3x?x32xf16, strided<[?, ?, 32, 1], offset: ?>, #aligned.planes<fixed<4, 4, 8>, key>>'}}
  aligned.scan %q, %k, %v, %d, %f scale %scale row %i split %i policy <budget, tolerance = 0.25> outs(%s, %t, %part : !s, !t, !part)
      : !q, !k, !v, !d, !f
  return
}
