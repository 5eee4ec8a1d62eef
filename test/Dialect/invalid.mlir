// RUN: aligned-opt %s --split-input-file --verify-diagnostics

// S4: what planes may look like.

// expected-error@+1 {{expected plane widths that are multiples of 4, got 6}}
func.func private @width(tensor<1x1x64x16xf16, #aligned.planes<fixed<6, 10>, key>>)

// -----

// expected-error@+1 {{expected plane widths that sum to 16, got 12}}
func.func private @sum(tensor<1x1x64x16xf16, #aligned.planes<fixed<4, 4, 4>, key>>)

// -----

// Fixed planes are of 4 or 8 bits: rows are read, and tiles multiplied, a nibble or a byte at a time.

// expected-error@+1 {{expected planes of 4 or 8 bits in a fixed format, got 12}}
func.func private @wide_plane(tensor<1x1x64x16xf16, #aligned.planes<fixed<4, 12>, key>>)

// -----

// expected-error@+1 {{expected planes of 4 or 8 bits in a fixed format, got 16}}
func.func private @one_plane(tensor<1x1x64x16xf16, #aligned.planes<fixed<16>, key>>)

// -----

// expected-error@+1 {{expected plane widths that are multiples of 4, got 20}}
func.func private @wider_than_all(tensor<1x1x64x16xf16, #aligned.planes<float<20>, key>>)

// -----

// expected-error@+1 {{expected 1 to 4 planes, got 5}}
func.func private @planes(tensor<1x1x64x16xf16, #aligned.planes<fixed<4, 4, 4, 4, 0>, key>>)

// -----

// expected-error@+1 {{expected 'fixed' or 'float', got 'posit'}}
func.func private @kind(tensor<1x1x64x16xf16, #aligned.planes<posit<16>, key>>)

// -----

// expected-error@+1 {{expected a packed tensor of rank 4 [batch, kv_heads, tokens, head_dim], got rank 3}}
func.func private @rank(tensor<1x64x16xf16, #aligned.planes<fixed<4, 4, 4, 4>, key>>)

// -----

// expected-error@+1 {{expected static batch and kv_heads in a packed tensor}}
func.func private @batch(tensor<?x1x64x16xf16, #aligned.planes<fixed<4, 4, 4, 4>, key>>)

// -----

// expected-error@+1 {{expected a static head_dim that is a multiple of 16, at most 256, in a packed tensor, got 24}}
func.func private @head_dim(tensor<1x1x64x24xf16, #aligned.planes<fixed<4, 4, 4, 4>, key>>)

// -----

// expected-error@+1 {{in a packed tensor, got ?}}
func.func private @head_dim(tensor<1x1x64x?xf16, #aligned.planes<fixed<4, 4, 4, 4>, key>>)

// -----

// expected-error@+1 {{in a packed tensor, got 272}}
func.func private @head_dim(tensor<1x1x64x272xf16, #aligned.planes<fixed<4, 4, 4, 4>, key>>)

// -----

// expected-error@+1 {{expected f16, bf16 or f32 elements in a tensor packed as fixed<4, 4, 4, 4>, got 'f64'}}
func.func private @element(tensor<1x1x64x16xf64, #aligned.planes<fixed<4, 4, 4, 4>, key>>)

// -----

// S8: the first plane of a float format holds sign and exponent.

// expected-error@+1 {{expected a first plane of at least 8 bits, which hold sign and exponent of a half, got 4}}
func.func private @first_plane(tensor<1x1x64x16xf16, #aligned.planes<float<4, 12>, key>>)

// -----

// expected-error@+1 {{expected f16 or f32 elements in a tensor packed as float<8, 4, 4>, got 'bf16'}}
func.func private @bf16(tensor<1x1x64x16xbf16, #aligned.planes<float<8, 4, 4>, key>>)

// -----

// S9: resident planes.

// expected-error@+1 {{expected 1 to 4 resident planes, got 0}}
func.func private @none(tensor<1x1x64x16xf16, #aligned.planes<fixed<4, 4, 4, 4>, key, resident = 0>>)

// -----

// expected-error@+1 {{expected 1 to 3 resident planes, got 4}}
func.func private @too_many(tensor<1x1x64x16xf16, #aligned.planes<float<8, 4, 4>, key, resident = 4>>)

// -----

// A1: operands agree.

func.func @batch(%q: tensor<1x2x1x16xf16>, %k: tensor<1x2x64x16xf16>, %v: tensor<2x2x64x16xf16>, %s: f32) {
  // expected-error@+1 {{expected key and value to agree in batch, got 1 and 2}}
  %out = aligned.attention %q, %k, %v scale %s : tensor<1x2x1x16xf16>, tensor<1x2x64x16xf16>, tensor<2x2x64x16xf16> -> tensor<1x2x1x16xf16>
  return
}

// -----

func.func @kv_heads(%q: tensor<1x2x1x16xf16>, %k: tensor<1x2x64x16xf16>, %v: tensor<1x1x64x16xf16>, %s: f32) {
  // expected-error@+1 {{expected key and value to agree in kv_heads, got 2 and 1}}
  %out = aligned.attention %q, %k, %v scale %s : tensor<1x2x1x16xf16>, tensor<1x2x64x16xf16>, tensor<1x1x64x16xf16> -> tensor<1x2x1x16xf16>
  return
}

// -----

func.func @tokens(%q: tensor<1x2x1x16xf16>, %k: tensor<1x2x64x16xf16>, %v: tensor<1x2x63x16xf16>, %s: f32) {
  // expected-error@+1 {{expected key and value to agree in tokens, got 64 and 63}}
  %out = aligned.attention %q, %k, %v scale %s : tensor<1x2x1x16xf16>, tensor<1x2x64x16xf16>, tensor<1x2x63x16xf16> -> tensor<1x2x1x16xf16>
  return
}

// -----

func.func @query_batch(%q: tensor<3x2x1x16xf16>, %k: tensor<1x2x64x16xf16>, %v: tensor<1x2x64x16xf16>, %s: f32) {
  // expected-error@+1 {{expected query and key to agree in batch, got 3 and 1}}
  %out = aligned.attention %q, %k, %v scale %s : tensor<3x2x1x16xf16>, tensor<1x2x64x16xf16>, tensor<1x2x64x16xf16> -> tensor<3x2x1x16xf16>
  return
}

// -----

func.func @head_dim(%q: tensor<1x2x1x32xf16>, %k: tensor<1x2x64x16xf16>, %v: tensor<1x2x64x16xf16>, %s: f32) {
  // expected-error@+1 {{expected query and key to agree in head_dim, got 32 and 16}}
  %out = aligned.attention %q, %k, %v scale %s : tensor<1x2x1x32xf16>, tensor<1x2x64x16xf16>, tensor<1x2x64x16xf16> -> tensor<1x2x1x16xf16>
  return
}

// -----

// A2: grouped heads.

func.func @heads(%q: tensor<1x7x1x16xf16>, %k: tensor<1x3x64x16xf16>, %v: tensor<1x3x64x16xf16>, %s: f32) {
  // expected-error@+1 {{expected query heads to be a multiple of kv heads, got 7 and 3}}
  %out = aligned.attention %q, %k, %v scale %s : tensor<1x7x1x16xf16>, tensor<1x3x64x16xf16>, tensor<1x3x64x16xf16> -> tensor<1x7x1x16xf16>
  return
}

// -----

func.func @no_heads(%q: tensor<1x7x1x16xf16>, %k: tensor<1x0x64x16xf16>, %v: tensor<1x0x64x16xf16>, %s: f32) {
  // expected-error@+1 {{expected query heads to be a multiple of kv heads, got 7 and 0}}
  %out = aligned.attention %q, %k, %v scale %s : tensor<1x7x1x16xf16>, tensor<1x0x64x16xf16>, tensor<1x0x64x16xf16> -> tensor<1x7x1x16xf16>
  return
}

// -----

func.func @no_query_heads(%q: tensor<1x0x1x16xf16>, %k: tensor<1x3x64x16xf16>, %v: tensor<1x3x64x16xf16>, %s: f32) {
  // expected-error@+1 {{expected one query head or more, got none}}
  %out = aligned.attention %q, %k, %v scale %s : tensor<1x0x1x16xf16>, tensor<1x3x64x16xf16>, tensor<1x3x64x16xf16> -> tensor<1x0x1x16xf16>
  return
}

// -----

// A3: the result.

func.func @result(%q: tensor<1x2x1x16xf16>, %k: tensor<1x2x64x16xf16>, %v: tensor<1x2x64x48xf16>, %s: f32) {
  // expected-error@+1 {{expected result dimension 3 to be 48, got 16}}
  %out = aligned.attention %q, %k, %v scale %s : tensor<1x2x1x16xf16>, tensor<1x2x64x16xf16>, tensor<1x2x64x48xf16> -> tensor<1x2x1x16xf16>
  return
}

// -----

// A4: roles.

func.func @key_role(%q: tensor<1x2x1x16xf16>, %k: tensor<1x2x64x16xf16, #aligned.planes<fixed<8, 8>, value>>,
                    %v: tensor<1x2x64x16xf16, #aligned.planes<fixed<8, 8>, value>>, %s: f32) {
  // expected-error@+1 {{expected the key's encoding to have role 'key', got 'value'}}
  %out = aligned.attention %q, %k, %v scale %s : tensor<1x2x1x16xf16>, tensor<1x2x64x16xf16, #aligned.planes<fixed<8, 8>, value>>,
      tensor<1x2x64x16xf16, #aligned.planes<fixed<8, 8>, value>> -> tensor<1x2x1x16xf16>
  return
}

// -----

func.func @value_role(%q: tensor<1x2x1x16xf16>, %k: tensor<1x2x64x16xf16, #aligned.planes<fixed<8, 8>, key>>, %s: f32) {
  // expected-error@+1 {{expected the value's encoding to have role 'value', got 'key'}}
  %out = aligned.attention %q, %k, %k scale %s : tensor<1x2x1x16xf16>, tensor<1x2x64x16xf16, #aligned.planes<fixed<8, 8>, key>>,
      tensor<1x2x64x16xf16, #aligned.planes<fixed<8, 8>, key>> -> tensor<1x2x1x16xf16>
  return
}

// -----

func.func @half_split(%q: tensor<1x2x1x16xf16>, %k: tensor<1x2x64x16xf16, #aligned.planes<fixed<8, 8>, key>>, %v: tensor<1x2x64x16xf16>, %s: f32) {
  // expected-error@+1 {{expected key and value to be both packed or both dense, got a packed key and a dense value}}
  %out = aligned.attention %q, %k, %v scale %s : tensor<1x2x1x16xf16>, tensor<1x2x64x16xf16, #aligned.planes<fixed<8, 8>, key>>,
      tensor<1x2x64x16xf16> -> tensor<1x2x1x16xf16>
  return
}

// -----

func.func @other_half(%q: tensor<1x2x1x16xf16>, %k: tensor<1x2x64x16xf16>, %v: tensor<1x2x64x16xf16, #aligned.planes<fixed<8, 8>, value>>, %s: f32) {
  // expected-error@+1 {{expected key and value to be both packed or both dense, got a packed value and a dense key}}
  %out = aligned.attention %q, %k, %v scale %s : tensor<1x2x1x16xf16>, tensor<1x2x64x16xf16>,
      tensor<1x2x64x16xf16, #aligned.planes<fixed<8, 8>, value>> -> tensor<1x2x1x16xf16>
  return
}

// -----

// A5, A6: appending.

func.func @count(%new: tensor<1x2x1x16xf16>, %cache: tensor<1x2x63x16xf16>) {
  // expected-error@+1 {{expected 64 tokens in the result, got 65}}
  %c = aligned.append %new to %cache : tensor<1x2x1x16xf16> to tensor<1x2x63x16xf16> -> tensor<1x2x65x16xf16>
  return
}

// -----

// A17: in the place of others.

func.func @replaced_count(%new: tensor<1x2x1x16xf16>, %cache: tensor<1x2x63x16xf16>, %position: index) {
  // expected-error@+1 {{'aligned.append' op expected cache and result to agree in tokens, got 63 and 64}}
  %c = aligned.append %new at %position to %cache : tensor<1x2x1x16xf16> to tensor<1x2x63x16xf16> -> tensor<1x2x64x16xf16>
  return
}

// -----

func.func @replaced_too_many(%new: tensor<1x2x64x16xf16>, %cache: tensor<1x2x63x16xf16>, %position: index) {
  // expected-error@+1 {{'aligned.append' op expected at most 63 tokens in the place of others, got 64}}
  %c = aligned.append %new at %position to %cache : tensor<1x2x64x16xf16> to tensor<1x2x63x16xf16> -> tensor<1x2x63x16xf16>
  return
}

// -----

func.func @replaced_beyond(%new: tensor<1x2x3x16xf16>, %cache: tensor<1x2x63x16xf16>) {
  %position = arith.constant 61 : index
  // expected-error@+1 {{'aligned.append' op expected a position from 0 to 60, got 61}}
  %c = aligned.append %new at %position to %cache : tensor<1x2x3x16xf16> to tensor<1x2x63x16xf16> -> tensor<1x2x63x16xf16>
  return
}

// -----

func.func @replaced_before(%new: tensor<1x2x3x16xf16>, %cache: tensor<1x2x63x16xf16>) {
  %position = arith.constant -1 : index
  // expected-error@+1 {{'aligned.append' op expected a position from 0 to 60, got -1}}
  %c = aligned.append %new at %position to %cache : tensor<1x2x3x16xf16> to tensor<1x2x63x16xf16> -> tensor<1x2x63x16xf16>
  return
}

// -----

func.func @append_heads(%new: tensor<1x3x1x16xf16>, %cache: tensor<1x2x63x16xf16>) {
  // expected-error@+1 {{expected tokens and cache to agree in kv_heads, got 3 and 2}}
  %c = aligned.append %new to %cache : tensor<1x3x1x16xf16> to tensor<1x2x63x16xf16> -> tensor<1x2x64x16xf16>
  return
}

// -----

func.func @append_result(%new: tensor<1x2x1x16xf16>, %cache: tensor<1x2x63x16xf16>) {
  // expected-error@+1 {{expected cache and result to agree in head_dim, got 16 and 32}}
  %c = aligned.append %new to %cache : tensor<1x2x1x16xf16> to tensor<1x2x63x16xf16> -> tensor<1x2x64x32xf16>
  return
}

// -----

func.func @append_element(%new: tensor<1x2x1x16xf32>, %cache: tensor<1x2x63x16xf16>) {
  // expected-error@+1 {{expected tokens, cache and result to agree in element type, got 'f32', 'f16' and 'f16'}}
  %c = aligned.append %new to %cache : tensor<1x2x1x16xf32> to tensor<1x2x63x16xf16> -> tensor<1x2x64x16xf16>
  return
}

// -----

func.func @append_split(%new: tensor<1x2x1x16xf16, #aligned.planes<fixed<8, 8>, key>>, %cache: tensor<1x2x63x16xf16, #aligned.planes<fixed<8, 8>, key>>) {
  // expected-error@+1 {{expected dense tokens, got}}
  %c = aligned.append %new to %cache : tensor<1x2x1x16xf16, #aligned.planes<fixed<8, 8>, key>> to tensor<1x2x63x16xf16, #aligned.planes<fixed<8, 8>, key>>
      -> tensor<1x2x64x16xf16, #aligned.planes<fixed<8, 8>, key>>
  return
}

// -----

func.func @append_encoding(%new: tensor<1x2x1x16xf16>, %cache: tensor<1x2x63x16xf16, #aligned.planes<fixed<8, 8>, key>>) {
  // expected-error@+1 {{expected the result to have the cache's encoding}}
  %c = aligned.append %new to %cache : tensor<1x2x1x16xf16> to tensor<1x2x63x16xf16, #aligned.planes<fixed<8, 8>, key>> -> tensor<1x2x64x16xf16>
  return
}

// -----

// Packing and unpacking.

func.func @pack_dense(%d: tensor<1x2x64x16xf16>) {
  // expected-error@+1 {{expected the result to have a plane encoding, got 'tensor<1x2x64x16xf16>'}}
  %s = aligned.pack %d : tensor<1x2x64x16xf16> to tensor<1x2x64x16xf16>
  return
}

// -----

func.func @pack_shape(%d: tensor<1x2x64x16xf16>) {
  // expected-error@+1 {{expected source and result to agree in shape and element type}}
  %s = aligned.pack %d : tensor<1x2x64x16xf16> to tensor<1x2x63x16xf16, #aligned.planes<fixed<8, 8>, key>>
  return
}

// -----

func.func @pack_packed(%d: tensor<1x2x64x16xf16, #aligned.planes<fixed<8, 8>, key>>) {
  // expected-error@+1 {{expected the source to be dense}}
  %s = aligned.pack %d : tensor<1x2x64x16xf16, #aligned.planes<fixed<8, 8>, key>> to tensor<1x2x64x16xf16, #aligned.planes<fixed<8, 8>, value>>
  return
}

// -----

func.func @unpack_bits(%s: tensor<1x2x64x16xf16, #aligned.planes<fixed<8, 8>, key>>) {
  // expected-error@+1 {{expected 1 to 16 bits, got 17}}
  %d = aligned.unpack %s bits 17 : tensor<1x2x64x16xf16, #aligned.planes<fixed<8, 8>, key>> to tensor<1x2x64x16xf16>
  return
}

// -----

func.func @unpack_no_bits(%s: tensor<1x2x64x16xf16, #aligned.planes<fixed<8, 8>, key>>) {
  // expected-error@+1 {{expected 1 to 16 bits, got 0}}
  %d = aligned.unpack %s bits 0 : tensor<1x2x64x16xf16, #aligned.planes<fixed<8, 8>, key>> to tensor<1x2x64x16xf16>
  return
}

// -----

func.func @unpack_dense(%d: tensor<1x2x64x16xf16>) {
  // expected-error@+1 {{expected the source to have a plane encoding, got 'tensor<1x2x64x16xf16>'}}
  %o = aligned.unpack %d : tensor<1x2x64x16xf16> to tensor<1x2x64x16xf16>
  return
}

// -----

func.func @unpack_to_packed(%s: tensor<1x2x64x16xf16, #aligned.planes<fixed<8, 8>, key>>) {
  // expected-error@+1 {{expected the result to be dense, got 'tensor<1x2x64x16xf16, #aligned.planes<fixed<4, 4, 8>, key>>'}}
  %o = aligned.unpack %s : tensor<1x2x64x16xf16, #aligned.planes<fixed<8, 8>, key>> to tensor<1x2x64x16xf16, #aligned.planes<fixed<4, 4, 8>, key>>
  return
}

// -----

// A7: the softmax state.

func.func @acc(%q: tensor<1x2x1x16xf16>, %k: tensor<1x2x64x16xf16>, %v: tensor<1x2x64x48xf16>, %s: f32) {
  // expected-error@+1 {{expected acc dimension 3 to be 48, got 16}}
  %a, %m, %l = aligned.decode_attention %q, %k, %v scale %s policy <exact>
      : tensor<1x2x1x16xf16>, tensor<1x2x64x16xf16>, tensor<1x2x64x48xf16> -> tensor<1x2x1x16xf32>, tensor<1x2x1xf32>, tensor<1x2x1xf32>
  return
}

// -----

func.func @max(%q: tensor<1x2x1x16xf16>, %k: tensor<1x2x64x16xf16>, %v: tensor<1x2x64x16xf16>, %s: f32) {
  // expected-error@+1 {{expected max dimension 1 to be 2, got 4}}
  %a, %m, %l = aligned.decode_attention %q, %k, %v scale %s policy <exact>
      : tensor<1x2x1x16xf16>, tensor<1x2x64x16xf16>, tensor<1x2x64x16xf16> -> tensor<1x2x1x16xf32>, tensor<1x4x1xf32>, tensor<1x2x1xf32>
  return
}

// -----

func.func @state_element(%q: tensor<1x2x1x16xf16>, %k: tensor<1x2x64x16xf16>, %v: tensor<1x2x64x16xf16>, %s: f32) {
  // expected-error@+1 {{result #0 must be 4D tensor of 32-bit float values}}
  %a, %m, %l = aligned.decode_attention %q, %k, %v scale %s policy <exact>
      : tensor<1x2x1x16xf16>, tensor<1x2x64x16xf16>, tensor<1x2x64x16xf16> -> tensor<1x2x1x16xf16>, tensor<1x2x1xf32>, tensor<1x2x1xf32>
  return
}

// -----

// A8: merging. The custom form can't even say it.

func.func @merge(%a: tensor<1x2x1x16xf32>, %m: tensor<1x2x1xf32>, %b: tensor<1x2x1x32xf32>) {
  // expected-error@+1 {{expected both states to have the result's types, got 'tensor<1x2x1x32xf32>' where the result has 'tensor<1x2x1x16xf32>'}}
  %0:3 = "aligned.merge"(%a, %m, %m, %b, %m, %m) <{operandSegmentSizes = array<i32: 1, 1, 1, 0, 1, 1, 1, 0>}>
      : (tensor<1x2x1x16xf32>, tensor<1x2x1xf32>, tensor<1x2x1xf32>, tensor<1x2x1x32xf32>, tensor<1x2x1xf32>, tensor<1x2x1xf32>)
      -> (tensor<1x2x1x16xf32>, tensor<1x2x1xf32>, tensor<1x2x1xf32>)
  return
}

// -----

// A9: finishing.

func.func @finish_sum(%a: tensor<1x2x1x16xf32>, %l: tensor<1x2x3xf32>) {
  // expected-error@+1 {{expected sum dimension 2 to be 1, got 3}}
  %o = aligned.finish %a, %l : tensor<1x2x1x16xf32>, tensor<1x2x3xf32> -> tensor<1x2x1x16xf16>
  return
}

// -----

func.func @finish_result(%a: tensor<1x2x1x16xf32>, %l: tensor<1x2x1xf32>) {
  // expected-error@+1 {{expected result dimension 0 to be 1, got 2}}
  %o = aligned.finish %a, %l : tensor<1x2x1x16xf32>, tensor<1x2x1xf32> -> tensor<2x2x1x16xf16>
  return
}

// -----

// P4: certificates.

func.func @merge_one_certificate(%a: tensor<1x2x1x16xf32>, %m: tensor<1x2x1xf32>, %c: tensor<1x2x1x8xf32>) {
  // expected-error@+1 {{expected a certificate of both states and of the result, or of none}}
  %0:3 = aligned.merge (%a, %m, %m, %c), (%a, %m, %m) : tensor<1x2x1x16xf32>, tensor<1x2x1xf32>
  return
}

// -----

func.func @merge_certificate(%a: tensor<1x2x1x16xf32>, %m: tensor<1x2x1xf32>, %c: tensor<1x2x1x6xf32>) {
  // expected-error@+1 {{expected certificate dimension 3 to be 8, got 6}}
  %0:4 = aligned.merge (%a, %m, %m, %c), (%a, %m, %m, %c) : tensor<1x2x1x16xf32>, tensor<1x2x1xf32> certified tensor<1x2x1x6xf32>
  return
}

// -----

func.func @decode_certificate(%q: tensor<1x2x1x16xf16>, %k: tensor<1x2x64x16xf16>, %s: f32) {
  // expected-error@+1 {{expected certificate dimension 3 to be 8, got 6}}
  %0:4 = aligned.decode_attention %q, %k, %k scale %s policy <exact> : tensor<1x2x1x16xf16>, tensor<1x2x64x16xf16>, tensor<1x2x64x16xf16>
      -> tensor<1x2x1x16xf32>, tensor<1x2x1xf32>, tensor<1x2x1xf32> certified tensor<1x2x1x6xf32>
  return
}

// -----

func.func @finish_without_certificate(%a: tensor<1x2x1x16xf32>, %l: tensor<1x2x1xf32>) {
  // expected-error@+1 {{expected a bound where there is a certificate, got no certificate}}
  %o:3 = aligned.finish %a, %l : tensor<1x2x1x16xf32>, tensor<1x2x1xf32> -> tensor<1x2x1x16xf16> certified tensor<1x2x1xf32>, tensor<1x2x1xf32>
  return
}

// -----

func.func @finish_certificate(%a: tensor<1x2x1x16xf32>, %l: tensor<1x2x1xf32>, %c: tensor<1x2x1x5xf32>) {
  // expected-error@+1 {{expected certificate dimension 3 to be 8, got 5}}
  %o:3 = aligned.finish %a, %l certificate %c : tensor<1x2x1x16xf32>, tensor<1x2x1xf32>, tensor<1x2x1x5xf32>
      -> tensor<1x2x1x16xf16> certified tensor<1x2x1xf32>, tensor<1x2x1xf32>
  return
}

// -----

func.func @bound(%q: tensor<1x2x1x16xf16>, %k: tensor<1x2x64x16xf16>, %s: f32) {
  // expected-error@+1 {{expected bound dimension 1 to be 2, got 3}}
  %o:3 = aligned.attention %q, %k, %k scale %s
      : tensor<1x2x1x16xf16>, tensor<1x2x64x16xf16>, tensor<1x2x64x16xf16> -> tensor<1x2x1x16xf16> certified tensor<1x3x1xf32>, tensor<1x2x1xf32>
  return
}

// -----

func.func @bound_alone(%q: tensor<1x2x1x16xf16>, %k: tensor<1x2x64x16xf16>, %s: f32) {
  // expected-error@+1 {{expected both a bound and an estimate or neither, got no estimate}}
  %o:2 = "aligned.attention"(%q, %k, %k, %s) <{operandSegmentSizes = array<i32: 1, 1, 1, 1, 0, 0>, resultSegmentSizes = array<i32: 1, 1, 0>}>
      : (tensor<1x2x1x16xf16>, tensor<1x2x64x16xf16>, tensor<1x2x64x16xf16>, f32) -> (tensor<1x2x1x16xf16>, tensor<1x2x1xf32>)
  return
}

// -----

// P1, P2: each policy reads its own formats.

func.func @alignedkv(%q: tensor<1x2x1x16xf16>, %k: tensor<1x2x64x16xf16, #aligned.planes<fixed<8, 8>, key>>,
                     %v: tensor<1x2x64x16xf16, #aligned.planes<fixed<8, 8>, value>>, %s: f32) {
  // expected-error@+1 {{expected a 'float' format under policy 'alignedkv', got key of format 'fixed'}}
  %a, %m, %l = aligned.decode_attention %q, %k, %v scale %s policy <alignedkv>
      : tensor<1x2x1x16xf16>, tensor<1x2x64x16xf16, #aligned.planes<fixed<8, 8>, key>>, tensor<1x2x64x16xf16, #aligned.planes<fixed<8, 8>, value>>
      -> tensor<1x2x1x16xf32>, tensor<1x2x1xf32>, tensor<1x2x1xf32>
  return
}

// -----

func.func @budget(%q: tensor<1x2x1x16xf16>, %k: tensor<1x2x64x16xf16, #aligned.planes<fixed<8, 8>, key>>,
                  %v: tensor<1x2x64x16xf16, #aligned.planes<float<16>, value>>, %s: f32) {
  // expected-error@+1 {{expected a 'fixed' format under policy 'budget', got value of format 'float'}}
  %a, %m, %l = aligned.decode_attention %q, %k, %v scale %s policy <budget, tolerance = 0.1>
      : tensor<1x2x1x16xf16>, tensor<1x2x64x16xf16, #aligned.planes<fixed<8, 8>, key>>, tensor<1x2x64x16xf16, #aligned.planes<float<16>, value>>
      -> tensor<1x2x1x16xf32>, tensor<1x2x1xf32>, tensor<1x2x1xf32>
  return
}

// -----

func.func @dense(%q: tensor<1x2x1x16xf16>, %k: tensor<1x2x64x16xf16>, %v: tensor<1x2x64x16xf16>, %s: f32) {
  // expected-error@+1 {{expected policy 'exact' over dense caches, got 'budget'}}
  %a, %m, %l = aligned.decode_attention %q, %k, %v scale %s policy <budget, tolerance = 0.1>
      : tensor<1x2x1x16xf16>, tensor<1x2x64x16xf16>, tensor<1x2x64x16xf16> -> tensor<1x2x1x16xf32>, tensor<1x2x1xf32>, tensor<1x2x1xf32>
  return
}

// -----

// expected-error@+1 {{expected a tolerance with 'budget'}}
func.func private @no_tolerance() attributes {policy = #aligned.policy<budget>}

// -----

// expected-error@+1 {{expected a tolerance above 0 and below 1, got 1}}
func.func private @large_tolerance() attributes {policy = #aligned.policy<budget, tolerance = 1.0>}

// -----

// expected-error@+1 {{expected a tolerance above 0 and below 1, got 0}}
func.func private @no_error() attributes {policy = #aligned.policy<budget, tolerance = 0.0>}

// -----

// expected-error@+1 {{expected a tolerance only with 'budget', got one with 'exact'}}
func.func private @exact_tolerance() attributes {policy = #aligned.policy<exact, tolerance = 0.5>}

// -----

// S2: the offset that a function says its keys have.

// expected-error@+1 {{expected 'aligned.key_offset' on a tensor of floats [batch, kv_heads, tokens, head_dim] with static kv_heads and head_dim, got it on argument #0 of 'tensor<1x?x64x16xf16>'}}
func.func private @offset_of_any(tensor<1x?x64x16xf16> {aligned.key_offset = dense<0.5> : tensor<2x16xf32>})

// -----

// expected-error@+1 {{expected 'aligned.key_offset' of argument #0 to be dense<...> : 'tensor<2x16xf32>', got a 'tensor<16x2xf32>'}}
func.func private @offset_shape(tensor<1x2x64x16xf16> {aligned.key_offset = dense<0.5> : tensor<16x2xf32>})

// -----

// expected-error@+1 {{expected 'aligned.key_offset' of argument #0 to be dense<...> : 'tensor<2x16xf32>', got 5.000000e-01 : f32}}
func.func private @offset_number(tensor<1x2x64x16xf16> {aligned.key_offset = 0.5 : f32})

// -----

// expected-error@+1 {{expected 'aligned.key_offset' of argument #1 to be finite, got inf for channel 1 of kv head 1}}
func.func private @offset_infinite(f32, tensor<1x2x64x2xf16> {aligned.key_offset = dense<[[0.5, 0.25], [0.0, 0x7F800000]]> : tensor<2x2xf32>})

// -----

// expected-error@+1 {{expected no 'aligned.offset' on an argument, where 'aligned.range' and 'aligned.key_offset' may stand}}
func.func private @offset_name(tensor<1x2x64x2xf16> {aligned.offset = dense<0.5> : tensor<2x2xf32>})

// -----

func.func @dense_copy_of_dense(%q: tensor<1x2x1x16xf16>, %k: tensor<1x2x64x16xf16>, %s: f32) -> tensor<1x2x1x16xf32> {
  // expected-error@+1 {{'aligned.decode_attention' op expected 'from_dense_copy' of packed caches, got 'tensor<1x2x64x16xf16>' and 'tensor<1x2x64x16xf16>'}}
  %a:3 = aligned.decode_attention %q, %k, %k scale %s policy <exact> from_dense_copy : tensor<1x2x1x16xf16>, tensor<1x2x64x16xf16>, tensor<1x2x64x16xf16>
      -> tensor<1x2x1x16xf32>, tensor<1x2x1xf32>, tensor<1x2x1xf32>
  return %a#0 : tensor<1x2x1x16xf32>
}

// -----

func.func @dense_copy_under_budget(%q: tensor<1x2x1x16xf16>, %k: tensor<1x2x64x16xf16, #aligned.planes<fixed<4, 4, 8>, key>>,
                                   %v: tensor<1x2x64x16xf16, #aligned.planes<fixed<4, 4, 8>, value>>, %s: f32) -> tensor<1x2x1x16xf32> {
  // expected-error@+1 {{'aligned.decode_attention' op expected policy 'exact' with 'from_dense_copy', got 'budget'}}
  %a:3 = aligned.decode_attention %q, %k, %v scale %s policy <budget, tolerance = 0.1> from_dense_copy
      : tensor<1x2x1x16xf16>, tensor<1x2x64x16xf16, #aligned.planes<fixed<4, 4, 8>, key>>, tensor<1x2x64x16xf16, #aligned.planes<fixed<4, 4, 8>, value>>
      -> tensor<1x2x1x16xf32>, tensor<1x2x1xf32>, tensor<1x2x1xf32>
  return %a#0 : tensor<1x2x1x16xf32>
}

// -----

func.func @dense_copy_is_asked_of_caches(%k: tensor<1x2x64x16xf16, #aligned.planes<fixed<4, 4, 8>, key>>, %v: tensor<1x2x64x16xf16>) -> i1 {
  // expected-error@+1 {{'aligned.has_dense_copy' op expected the value to have a plane encoding, got 'tensor<1x2x64x16xf16>'}}
  %there = aligned.has_dense_copy %k, %v : tensor<1x2x64x16xf16, #aligned.planes<fixed<4, 4, 8>, key>>, tensor<1x2x64x16xf16>
  return %there : i1
}
