// PTX text as data: what a module declares and, for every function, a list of instructions with their operands resolved to
// registers, numbers and names. Nothing here knows what an opcode means; see Decode.h for that.

#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace aligned::emulator {

enum class Type : uint8_t {
  None,
  Predicate,
  B8,
  B16,
  B32,
  B64,
  B128,
  U8,
  U16,
  U32,
  U64,
  S8,
  S16,
  S32,
  S64,
  F16,
  F16x2,
  BF16,
  BF16x2,
  F32,
  F32x2,
  F64,
  TF32,
  U16x2,
  S16x2,
  E4M3,
  E5M2,
  E4M3x2,
  E5M2x2,
  U4,
  S4,
  B1
};

/// `None` if `name` ("u32") is no type.
Type typeNamed(std::string_view name);
unsigned bitsOf(Type type);
inline unsigned bytesOf(Type type) { return (bitsOf(type) + 7) / 8; }
bool isSigned(Type type);
bool isFloat(Type type); // of one element or two

enum class Space : uint8_t { Generic, Global, Shared, Local, Constant, Parameter };

/// A variable or a parameter, with what it is initialised with.
struct Variable {
  /// At `offset` lies the address of `name`, plus `addend`.
  struct Pointer {
    uint64_t offset;
    std::string name;
    int64_t addend;
  };
  std::string name;
  Space space = Space::Global;
  Type type = Type::None;
  uint64_t align = 0, bytes = 0;
  bool external = false;
  std::vector<uint8_t> initial; // shorter than `bytes`: the rest is zero
  std::vector<Pointer> pointers;
  int line = 0;
};

struct Operand {
  enum Kind : uint8_t {
    Register, // `index` in the function's registers
    Special,  // %tid.x and the like, `name`
    Integer,  // `value`
    Single,   // `value`, bits of a float
    Double,   // `value`, bits of a double
    Name,     // a variable, a label or a function
    Address,  // [elements[0] + value]
    Vector,   // {elements}
    Pair,     // elements[0] | elements[1]
    Sink      // _
  };
  Kind kind = Sink;
  bool negated = false; // !%p
  uint32_t index = 0;
  uint64_t value = 0;
  std::string name;
  std::vector<Operand> elements;
};

struct Instruction {
  int line = 0;
  std::string text; // as written, white space collapsed
  Operand guard;    // Sink: none
  std::string opcode;
  std::vector<std::string> modifiers;
  std::vector<Operand> operands;
};

struct Register {
  std::string name;
  Type type;
};

struct Function {
  std::string name;
  bool entry = false, external = false;
  int line = 0;
  std::vector<Variable> parameters, results;
  std::vector<Variable> variables; // .shared, .local, .param of calls
  std::vector<Register> registers;
  std::vector<Instruction> instructions;
  std::map<std::string, uint32_t> labels;                        // index of the instruction that follows
  std::map<std::string, std::vector<std::string>> branchTargets; // lists of labels
  std::map<std::string, std::vector<uint32_t>> directives;       // "maxntid" -> {128, 1, 1}
};

struct Module {
  unsigned version = 0; // 78 for 7.8
  std::string target;   // "sm_90a"
  unsigned addressSize = 64;
  std::vector<Variable> variables;
  std::vector<Function> functions;

  const Function *find(std::string_view name) const;
};

/// On failure `error` is a message with the line and what stands there.
bool parse(std::string_view text, Module &module, std::string &error);

} // namespace aligned::emulator
