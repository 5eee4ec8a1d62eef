!q = tensor<1x6x1x32xf16>
!cache = tensor<1x2x?x32xf16>

func.func @two(%q: !q, %k: !cache, %v: !cache, %scale: f32) -> (!q, !q) {
  %a = aligned.attention %q, %k, %v scale %scale : !q, !cache, !cache -> !q
  %b = aligned.attention %q, %k, %v scale %scale : !q, !cache, !cache -> !q
  return %a, %b : !q, !q
}
