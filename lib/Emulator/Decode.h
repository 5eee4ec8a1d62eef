// From PTX instructions to steps. Every family of opcodes lies in a file of its own, next to the loops that it is decoded to, and
// enters its opcodes into a table; the decoder has what all of them need: modifiers that have to be used up, and operands of a
// type.

#pragma once

#include "Code.h"

#include <functional>
#include <initializer_list>

namespace aligned::emulator {

/// The parts of an opcode behind its first dot, each used once.
class Modifiers {
public:
  void reset(const std::vector<std::string> &list) {
    this->list = &list;
    used.assign(list.size(), false);
  }
  bool take(std::string_view name);
  /// The one that is there, or `otherwise`.
  std::string_view takeOneOf(std::initializer_list<std::string_view> names, std::string_view otherwise = "");
  /// The next that names a type.
  Type type();
  /// The next of those that are left, whatever it is; empty: none.
  std::string_view next();
  bool has(std::string_view name) const;

private:
  const std::vector<std::string> *list = nullptr;
  std::vector<bool> used;
};

/// Where a variable is.
struct Place {
  Space space;
  uint64_t address; // within the space
};

class Decoder {
public:
  Decoder(const Module &module, const std::map<std::string, Place> &places, Kernel &kernel, std::string &error)
      : module(module), modulePlaces(places), kernel(kernel), error(error) {}

  bool decode(const Function &entry);

  //===--------------------------------------------------------------------===//
  // For the families
  //===--------------------------------------------------------------------===//

  Modifiers modifiers;
  const Instruction &instruction() const { return *source; }
  const std::vector<Operand> &operands() const { return source->operands; }
  size_t count() const { return source->operands.size(); }
  bool fail(const std::string &message);
  /// Fails unless there are this many operands.
  bool expectOperands(size_t least, size_t most);
  bool expectOperands(size_t number) { return expectOperands(number, number); }
  bool unsupported(); // these modifiers
  bool finished();    // no modifier is left

  /// Registers of 32 lanes of `type`. On failure, which `fail` has noted, some offset.
  uint32_t read(const Operand &operand, Type type);
  uint32_t read(size_t operand, Type type) { return read(operands()[operand], type); }
  uint32_t write(const Operand &operand, Type type);
  uint32_t write(size_t operand, Type type) { return write(operands()[operand], type); }
  uint32_t constant(uint64_t value, unsigned bytes);
  uint32_t temporary();             // up to 64 bits a lane, for the present instruction
  uint32_t allocate(unsigned bits); // for the kernel
  uint32_t carry();                 // the flag of add.cc
  /// All elements of a vector, or the one that a plain operand is.
  std::vector<uint32_t> readAll(const Operand &operand, Type type);
  std::vector<uint32_t> writeAll(const Operand &operand, Type type);
  uint32_t list(const std::vector<uint32_t> &registers);
  /// The value of an integer that has to be known now.
  bool immediate(const Operand &operand, int64_t &value);

  /// 64-bit lanes of addresses in `a`, and what to add in `number`. The space becomes another where a variable says so.
  bool address(const Operand &operand, Space &space, uint32_t &base, int64_t &offset);

  Step &emit(Handler run, uint32_t d = 0, uint32_t a = 0, uint32_t b = 0, uint32_t c = 0);
  /// A step behind the instruction's own.
  void emitAfter(Handler run, uint32_t d, uint32_t a);
  Code &code() { return current; }
  Kernel &target() { return kernel; }

private:
  struct Frame {
    const Function *function;
    std::vector<uint32_t> registers;
    std::map<std::string, Place> places;
    std::vector<uint32_t> starts;                        // code index of every instruction, and of the end
    std::vector<std::pair<uint32_t, std::string>> jumps; // code whose target is a label
    std::vector<uint32_t> returns;                       // code that jumps behind the body
  };

  bool decodeBody(const Function &function, Frame &frame);
  bool decodeInstruction(const Instruction &instruction);
  bool decodeControl(bool &handled);
  bool decodeCall();
  void push();
  const Place *find(const std::string &name);
  void countShared(uint64_t bytes, uint64_t align);
  void narrow(uint32_t d, unsigned toBits, uint32_t a, unsigned fromBits);

  const Module &module;
  const std::map<std::string, Place> &modulePlaces;
  Kernel &kernel;
  std::string &error;
  Frame *frame = nullptr;
  std::vector<const Function *> calls;
  const Instruction *source = nullptr;
  Code current;
  std::vector<Step> after;
  std::vector<uint32_t> temporaries;
  size_t usedTemporaries = 0;
  std::map<std::pair<uint64_t, unsigned>, uint32_t> constants;
  std::map<Special, uint32_t> specials;
  int64_t carryRegister = -1;
};

/// Decodes what the instruction at hand asks for, in steps, or fails.
using DecodeOpcode = bool (*)(Decoder &decoder);
using OpcodeTable = std::unordered_map<std::string, DecodeOpcode>;
void addIntegerOpcodes(OpcodeTable &table);
void addFloatOpcodes(OpcodeTable &table);
void addConversionOpcodes(OpcodeTable &table);
void addMemoryOpcodes(OpcodeTable &table);
void addCollectiveOpcodes(OpcodeTable &table);

/// Float forms of opcodes that integers have, too.
bool decodeFloat(Decoder &decoder, Type type);
/// Comparisons, for setp and set; null if there is none of that name for the type.
using Comparison = Mask (*)(const Warp &warp, uint32_t a, uint32_t b);
Comparison comparison(std::string_view name, Type type, bool flushed);

/// The register that the mask of a .sync collective is read from; makes the instruction a collective.
void makeCollective(Decoder &decoder, uint32_t members);
void makeAligned(Decoder &decoder);

/// Steps that copy with another width.
Handler widenHandler(unsigned fromBits, unsigned toBits, bool isSigned);

} // namespace aligned::emulator
