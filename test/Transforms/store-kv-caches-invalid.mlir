// RUN: aligned-opt %s --aligned-store-kv-caches=format="float<8,4,4>" --split-input-file --verify-diagnostics
// RUN: not aligned-opt %s --aligned-store-kv-caches=format=planes 2>&1 | FileCheck %s --check-prefix=NAME
// RUN: not aligned-opt %s --aligned-store-kv-caches=format="fixed<4,4>" 2>&1 | FileCheck %s --check-prefix=SUM

// NAME: error: expected a plane format such as 'fixed<4,4,8>' or 'float<8,4,4>', got 'planes'
// SUM: error: expected plane widths that sum to 16, got 8

// A format that is asked for by name and can't be had is an error, told at the attention and at the tensor.

// expected-note@+1 {{the key is defined here}}
func.func @element(%q: tensor<1x6x1x32xbf16>, %k: tensor<1x2x?x32xbf16>, %v: tensor<1x2x?x32xbf16>, %scale: f32) -> tensor<1x6x1x32xbf16> {
  // expected-error@+1 {{'aligned.attention' op key: expected f16 or f32 elements in a tensor packed as float<8, 4, 4>, got 'bf16'}}
  %out = aligned.attention %q, %k, %v scale %scale : tensor<1x6x1x32xbf16>, tensor<1x2x?x32xbf16>, tensor<1x2x?x32xbf16> -> tensor<1x6x1x32xbf16>
  return %out : tensor<1x6x1x32xbf16>
}

// -----

func.func @head_dim(%q: tensor<1x6x1x32xf16>, %k: tensor<1x2x?x32xf16>, %v: tensor<1x2x?x24xf16>, %scale: f32) -> tensor<1x6x1x24xf16> {
  // expected-note@+1 {{the value is defined here}}
  %0 = arith.negf %v : tensor<1x2x?x24xf16>
  // expected-error@+1 {{'aligned.attention' op value: expected a static head_dim that is a multiple of 16, at most 256, in a packed tensor, got 24}}
  %out = aligned.attention %q, %k, %0 scale %scale : tensor<1x6x1x32xf16>, tensor<1x2x?x32xf16>, tensor<1x2x?x24xf16> -> tensor<1x6x1x24xf16>
  return %out : tensor<1x6x1x24xf16>
}

// -----

// More query rows than a kernel takes stay dense in any format.

func.func @prefill(%q: tensor<1x6x11x32xf16>, %k: tensor<1x2x?x32xf16>, %v: tensor<1x2x?x32xf16>, %scale: f32) -> tensor<1x6x11x32xf16> {
  // expected-remark@+1 {{attention stays dense: expected at most 32 query rows per kv head, got 33}}
  %out = aligned.attention %q, %k, %v scale %scale : tensor<1x6x11x32xf16>, tensor<1x2x?x32xf16>, tensor<1x2x?x32xf16> -> tensor<1x6x11x32xf16>
  return %out : tensor<1x6x11x32xf16>
}
