// Text: what is accepted, and what is said about the rest.

#include "Support.h"

#include "Ptx.h"

using namespace aligned::emulator;

namespace {

std::string errorOf(const std::string &text, Options options = Options()) {
  Machine machine(options);
  std::string error;
  auto program = machine.load(text, error);
  EXPECT_EQ(program == nullptr, !error.empty());
  return error;
}
std::string errorOfBody(const std::string &body) { return errorOf(kernel(1, body)); }

#define EXPECT_HAS(text, part) EXPECT_NE((text).find(part), std::string::npos) << "expected '" << part << "' in: " << (text)

TEST(Parser, Module) {
  Module module;
  std::string error;
  ASSERT_TRUE(parse(
      "// a comment\n/* and\nanother */ .version 7.8\n.target sm_90a, texmode_independent\n.address_size 64\n.file 1 \"x.cu\"\n"
      ".visible .entry first ( .param .u64 a , .param .align 8 .b8 b[24] )\n.maxntid 128, 1, 1\n.reqntid 64\n.maxnreg "
      "40\n{\n.reg .pred %p<3>;\n.loc 1 3 4, function_name $x, inlined_at 1 2 3\n"
      "$L__BB0_1: // label\n@!%p2 add.rn.ftz.f32 _, 0f3F800000, -1.5;\nbra.uni $L__BB0_1;\n.pragma \"used_bytes_mask "
      "0xf\";\nret;\n}\n.section .debug_str { .b8 1 }\n",
      module, error))
      << error;
  EXPECT_EQ(module.version, 78u);
  EXPECT_EQ(module.target, "sm_90a");
  ASSERT_EQ(module.functions.size(), 1u);
  const Function &function = module.functions[0];
  EXPECT_EQ(function.name, "first");
  EXPECT_TRUE(function.entry);
  ASSERT_EQ(function.parameters.size(), 2u);
  EXPECT_EQ(function.parameters[1].bytes, 24u);
  EXPECT_EQ(function.parameters[1].align, 8u);
  EXPECT_EQ(function.directives.at("maxntid"), (std::vector<uint32_t>{128, 1, 1}));
  ASSERT_EQ(function.instructions.size(), 3u);
  const Instruction &add = function.instructions[0];
  EXPECT_EQ(add.opcode, "add");
  EXPECT_EQ(add.modifiers, (std::vector<std::string>{"rn", "ftz", "f32"}));
  EXPECT_TRUE(add.guard.negated);
  EXPECT_EQ(add.operands[0].kind, Operand::Sink);
  EXPECT_EQ(add.operands[1].kind, Operand::Single);
  EXPECT_EQ(add.operands[2].kind, Operand::Double);
  EXPECT_EQ(add.line, 15);
  EXPECT_EQ(add.text, "@!%p2 add.rn.ftz.f32 _, 0f3F800000, -1.5;");
  EXPECT_EQ(function.labels.at("$L__BB0_1"), 0u);
}

TEST(Parser, Numbers) {
  Machine machine;
  auto program =
      loaded(machine, kernel(1, "mov.u32 %r1, 0x1F;\nmov.u32 %r2, -5;\nmov.u32 %r3, 4000000000U;\nmov.u32 %r4, 0b101;\nmov.f32 "
                                "%r5, 1.5;\nmov.f32 %r6, -2.5e-1;\nmov.f32 %r7, 0fBF800000;\nmov.u32 %r8, WARP_SZ;\n"
                                "st.global.v4.u32 [%p0], {%r1, %r2, %r3, %r4};\nst.global.v4.u32 [%p0+0x10], {%r5, %r6, %r7, "
                                "%r8};\nadd.u64 %w1, %p0, 40;\nst.global.u32 [%w1+-8], 7;"));
  uint64_t out = machine.allocate(36);
  ASSERT_TRUE(program && machine.launch(*program, "k", {1}, {1}, Arguments().add(out))) << machine.error();
  EXPECT_EQ(download<uint32_t>(machine, out, 9),
            (std::vector<uint32_t>{31, uint32_t(-5), 4000000000u, 5, 0x3fc00000, 0xbe800000, 0xbf800000, 32, 7}));
}

TEST(Parser, Scopes) {
  // Names of inner braces hide outer ones, labels too.
  Machine machine;
  auto program = loaded(machine, kernel(1, "mov.u32 %r1, 1;\n{ .reg .u32 %r1; .reg .pred p; mov.u32 %r1, 2; setp.eq.u32 p, %r1, "
                                           "2; @p bra done; mov.u32 %r2, 5; done: mov.u32 %r2, %r1; }\n"
                                           "{ .reg .pred p; setp.ne.u32 p, %r1, 1; @p bra done; add.u32 %r2, %r2, 40; done: "
                                           "}\nadd.u32 %r2, %r2, %r1;\nst.global.u32 [%p0], %r2;"));
  uint64_t out = machine.allocate(4);
  ASSERT_TRUE(program && machine.launch(*program, "k", {1}, {1}, Arguments().add(out))) << machine.error();
  EXPECT_EQ(download<uint32_t>(machine, out, 1)[0], 43u);
}

TEST(Parser, Errors) {
  EXPECT_HAS(errorOf(""), "which opens with .version");
  EXPECT_HAS(errorOf("hello"), "line 1: expected a directive, got 'hello'");
  EXPECT_HAS(errorOf(".version 8\n.target sm_90\n"), "line 1: expected a version like 8.0");
  EXPECT_HAS(errorOf(std::string(header) + ".weird x;"), "line 4: unknown directive '.weird'");
  EXPECT_HAS(errorOf(".version 8.0\n.target sm_90\n.address_size 32\n"), "expected .address_size 64, got 32");
  EXPECT_HAS(errorOf(std::string(header) + ".visible .entry k() { ret;"), "expected '}', got the end");
  EXPECT_HAS(errorOf(std::string(header) + ".visible .entry k() { ret }"), "expected an operand, got '}'");
  EXPECT_HAS(errorOf(std::string(header) + ".visible .entry k() { ret; }\n.visible .entry k() { ret; }"),
             "line 5: 'k' is defined twice");
  EXPECT_HAS(errorOf(std::string(header) + ".extern .func __nv_expf(.param .b32 x);\n.visible .entry k() { ret; }"),
             "line 4: external function '__nv_expf'");
  EXPECT_HAS(errorOf(std::string(header) + ".shared .align 4 .b8 big[50000];\n.visible .entry k() { ret; }"),
             "'big' is larger than shared memory");
  EXPECT_HAS(errorOf(kernel(1, "st.shared.u32 [a], 0;\nst.shared.u32 [b], 0;", ".shared .b8 a[30000];\n.shared .b8 b[30000];\n")),
             "'k' uses 60000 bytes of shared memory, of which there are 49152");
  EXPECT_HAS(errorOf(std::string(header) + ".global .u32 x[2] = {1, 2, 3};\n"), "'x' has more initial values than elements");
  EXPECT_HAS(errorOf(std::string(header) + ".global .u64 x = y;\n"), "unknown name 'y'");
  EXPECT_HAS(errorOf(std::string(header) + ".global .align 3 .u64 x;\n"), "expected an alignment that is a power of two");
  EXPECT_EQ(errorOf(kernel(1, "")), "");

  // Within a body: line, text, and what is wrong.
  std::string error = errorOfBody("mov.u32 %r1, 1;\nfrobnicate.u32 %r1, %r2;");
  EXPECT_HAS(error, "line 10: 'frobnicate.u32 %r1, %r2;': unknown opcode 'frobnicate'");
  EXPECT_HAS(errorOfBody("add.u32.strange %r1, %r2, %r3;"), "unsupported modifier '.strange' of 'add'");
  EXPECT_HAS(errorOfBody("add.u8 %h1, %h2, %h3;"), "unsupported form '.u8' of 'add'");
  EXPECT_HAS(errorOfBody("add.u32 %r1, %r2;"), "expected 3 operands, got 2");
  EXPECT_HAS(errorOfBody("add.u32 %r1, %r2, %nobody;"), "unknown register '%nobody'");
  EXPECT_HAS(errorOfBody("add.u32 %r1, %r2, somebody;"), "unknown name 'somebody'");
  EXPECT_HAS(errorOfBody("add.u32 %r1, %r2, %h3;"), "expected a register of 32 bits, got '%h3' of 16");
  EXPECT_HAS(errorOfBody("add.u32 %r1, %r2, %q3;"), "expected a number, got '%q3'");
  EXPECT_HAS(errorOfBody("and.pred %q1, %q2, %r3;"), "expected a predicate, got '%r3'");
  EXPECT_HAS(errorOfBody("add.u32 5, %r2, %r3;"), "expected a register to write to");
  EXPECT_HAS(errorOfBody("add.f32 %r1, %r2, 5;"), "expected a floating-point number, got an integer");
  EXPECT_HAS(errorOfBody("@%r1 add.u32 %r1, %r2, 5;"), "expected a predicate after '@'");
  EXPECT_HAS(errorOfBody("bra NOWHERE;"), "unknown label 'NOWHERE'");
  EXPECT_HAS(errorOfBody("A: A: ret;"), "label 'A' is defined twice");
  EXPECT_HAS(errorOfBody("ld.global.v4.u32 {%r1, %r2}, [%p0];"), "expected 4 registers");
  EXPECT_HAS(errorOfBody("ld.global.u32 %r1, %p0;"), "expected an address in brackets");
  EXPECT_HAS(errorOfBody("ld.param.u64 %w1, [p0+4];"), "expected an address within the parameters");
  EXPECT_HAS(errorOfBody("ld.shared.u32 %r1, [p0];"), "'p0' is in another state space");
  EXPECT_HAS(errorOfBody("cvt.s32.f32 %r1, %r2;"), "expected a rounding to an integer");
  EXPECT_HAS(errorOfBody("setp.approximately.u32 %q1, %r1, %r2;"), "unsupported form");
  EXPECT_HAS(errorOfBody("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%r1, %r2}, {%r3, %r4, %r5, %r6}, {%r7, %r8}, {%r1, "
                         "%r2, %r3, %r4};"),
             "expected matrices of 4, 4, 2 and 4 registers");
  EXPECT_HAS(errorOfBody("mma.sync.aligned.m16n8k7.row.col.f32.f16.f16.f32 {%r1}, {%r2}, {%r3}, {%r4};"), "unsupported form");
  EXPECT_HAS(errorOfBody("call.uni nobody;"), "unknown function 'nobody'");
  EXPECT_HAS(errorOfBody("mov.u32 %r1, 0x12zz;"), "expected a number");
  EXPECT_HAS(errorOfBody("mov.u32 %r1, {{{{{{{{{%r1}}}}}}}}};"), "expected an operand without more brackets");
  EXPECT_HAS(errorOfBody("cp.async.ca.shared.global [%r1], [%p0], 5;"), "expected a copy of 4, 8 or 16 bytes");
  EXPECT_HAS(errorOf(std::string(header) + ".func f() { call.uni f; ret; }\n.visible .entry k() { call.uni f; ret; }"),
             "recursion of 'f'");
}

TEST(Parser, Targets) {
  Options options;
  options.capability = 80;
  EXPECT_HAS(errorOf(kernel(1, ""), options), "target sm_90 does not run on a device of capability 8.0");
  options.capability = 100;
  EXPECT_EQ(errorOf(kernel(1, ""), options), "");
  EXPECT_HAS(errorOf(".version 8.0\n.target sm_90a\n.address_size 64\n", options), "target sm_90a does not run");
  options.ptxVersion = 78;
  EXPECT_HAS(errorOf(kernel(1, ""), options), "PTX 8.0 is later than what the driver understands, 7.8");
  EXPECT_HAS(errorOf(".version 7.0\n.target compute\n.address_size 64\n"), "expected .target sm_..");
}

TEST(Parser, SurvivesAnything) {
  // Prefixes of a program, and ones with a character changed: an error or a program, but no crash.
  std::string text =
      kernel(2,
             "setp.lt.u32 %q1|%q2, %tid, 5;\n@!%q1 ld.global.v2.u32 {%r1, _}, [%p1+-16];\nmov.b64 %w1, {%r1, %r2};\nL: "
             "shfl.sync.bfly.b32 %r3|%q3, %r1, 1, 31, -1;\n"
             "{ .param .b32 x; st.param.b32 [x], %r1; call.uni f, (x); }\nmov.f32 %r4, 0f3F800000;\nbra.uni L;",
             ".func f(.param .b32 a) { ret; }\n.global .align 8 .b8 t[8] = {1, 2, -3, 0x4};\n.shared .b8 s[16];\n");
  Machine machine;
  std::string error;
  for (size_t length = 0; length < text.size(); ++length)
    machine.load(text.substr(0, length), error);
  std::mt19937 random(1);
  const std::string characters = std::string(1, '\0') + "{}[]();,.:%@!|+-\"\n/*0ax_<>";
  for (int i = 0; i < 4000; ++i) {
    std::string changed = text;
    for (int n = 0; n < 1 + i % 3; ++n)
      changed[random() % changed.size()] = characters[random() % characters.size()];
    machine.load(changed, error);
  }
}

} // namespace
