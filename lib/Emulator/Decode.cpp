// The decoder's own part: operands, control flow, calls (bodies are repeated where they are called) and barriers.

#include "Decode.h"

#include "Lanes.h"

#include <algorithm>

namespace aligned::emulator {

//===----------------------------------------------------------------------===//
// Modifiers
//===----------------------------------------------------------------------===//

bool Modifiers::take(std::string_view name) {
  for (size_t i = 0; i < used.size(); ++i)
    if (!used[i] && (*list)[i] == name)
      return used[i] = true;
  return false;
}

bool Modifiers::has(std::string_view name) const { return std::find(list->begin(), list->end(), name) != list->end(); }

std::string_view Modifiers::takeOneOf(std::initializer_list<std::string_view> names, std::string_view otherwise) {
  for (std::string_view name : names)
    if (take(name))
      return name;
  return otherwise;
}

Type Modifiers::type() {
  for (size_t i = 0; i < used.size(); ++i)
    if (!used[i])
      if (Type type = typeNamed((*list)[i]); type != Type::None) {
        used[i] = true;
        return type;
      }
  return Type::None;
}

std::string_view Modifiers::next() {
  for (size_t i = 0; i < used.size(); ++i)
    if (!used[i]) {
      used[i] = true;
      return (*list)[i];
    }
  return "";
}

//===----------------------------------------------------------------------===//
// Steps that only move
//===----------------------------------------------------------------------===//

namespace {

template <typename From, typename To> void convertWidth(Warp &warp, const Step &step, Mask active) {
  map<From, To>(warp, step, active, [](From a) { return To(a); });
}

void invertPredicate(Warp &warp, const Step &step, Mask active) { setPredicate(warp, step.d, ~predicate(warp, step.a), active); }

template <typename From> Handler widenFrom(unsigned toBits) {
  switch (toBits) {
  case 8:
    return convertWidth<From, uint8_t>;
  case 16:
    return convertWidth<From, uint16_t>;
  case 32:
    return convertWidth<From, uint32_t>;
  default:
    return convertWidth<From, uint64_t>;
  }
}

void readClock(Warp &warp, const Step &step, Mask active) {
  uint64_t values[warpSize];
  for (uint64_t &value : values)
    value = warp.launch->executed * (step.flags ? 1 : 4);
  put(warp, step.d, values, active);
}

} // namespace

Handler widenHandler(unsigned fromBits, unsigned toBits, bool isSigned) {
  switch (fromBits) {
  case 8:
    return isSigned ? widenFrom<int8_t>(toBits) : widenFrom<uint8_t>(toBits);
  case 16:
    return isSigned ? widenFrom<int16_t>(toBits) : widenFrom<uint16_t>(toBits);
  case 32:
    return isSigned ? widenFrom<int32_t>(toBits) : widenFrom<uint32_t>(toBits);
  default:
    return isSigned ? widenFrom<int64_t>(toBits) : widenFrom<uint64_t>(toBits);
  }
}

//===----------------------------------------------------------------------===//
// Messages
//===----------------------------------------------------------------------===//

bool Decoder::fail(const std::string &message) {
  if (error.empty())
    error = (source ? "line " + std::to_string(source->line) + ": '" + source->text + "': " : "") + message;
  return false;
}

bool Decoder::expectOperands(size_t least, size_t most) {
  if (count() >= least && count() <= most)
    return true;
  return fail("expected " + std::to_string(least) + (least == most ? "" : " to " + std::to_string(most)) + " operands, got " +
              std::to_string(count()));
}

bool Decoder::unsupported() {
  std::string all;
  for (const std::string &modifier : source->modifiers)
    all += "." + modifier;
  return fail("unsupported form '" + all + "' of '" + source->opcode + "'");
}

bool Decoder::finished() {
  std::string_view rest = modifiers.next();
  return rest.empty() || fail("unsupported modifier '." + std::string(rest) + "' of '" + source->opcode + "'");
}

//===----------------------------------------------------------------------===//
// Registers and numbers
//===----------------------------------------------------------------------===//

uint32_t Decoder::allocate(unsigned bits) {
  uint32_t bytes = bits == 1 ? 4 : (std::max(bits, 8u) / 8) * warpSize;
  uint32_t align = std::min(bytes, 64u), result = (kernel.fileBytes + align - 1) / align * align;
  kernel.fileBytes = result + bytes;
  return result;
}

uint32_t Decoder::temporary() {
  if (usedTemporaries == temporaries.size())
    temporaries.push_back(allocate(64));
  return temporaries[usedTemporaries++];
}

uint32_t Decoder::carry() {
  if (carryRegister < 0)
    carryRegister = allocate(1);
  return uint32_t(carryRegister);
}

uint32_t Decoder::constant(uint64_t value, unsigned bytes) {
  if (bytes && bytes < 8)
    value &= (uint64_t(1) << (8 * bytes)) - 1;
  auto [it, fresh] = constants.try_emplace({value, bytes}, 0);
  if (fresh) {
    it->second = allocate(bytes ? bytes * 8 : 1); // 0: a predicate
    kernel.constants.push_back({it->second, uint8_t(bytes), value});
  }
  return it->second;
}

void Decoder::narrow(uint32_t d, unsigned toBits, uint32_t a, unsigned fromBits) {
  emit(widenHandler(fromBits, toBits, false), d, a);
}

Step &Decoder::emit(Handler run, uint32_t d, uint32_t a, uint32_t b, uint32_t c) {
  Step step;
  step.run = run;
  step.d = d, step.a = a, step.b = b, step.c = c;
  step.code = uint32_t(kernel.code.size());
  kernel.steps.push_back(step);
  return kernel.steps.back();
}

void Decoder::emitAfter(Handler run, uint32_t d, uint32_t a) {
  Step step;
  step.run = run;
  step.d = d, step.a = a;
  step.code = uint32_t(kernel.code.size());
  after.push_back(step);
}

namespace {

struct SpecialRow {
  const char *name;
  Special special;
};
constexpr SpecialRow specialTable[] = {
    {"%tid.x", Special::TidX},
    {"%tid.y", Special::TidY},
    {"%tid.z", Special::TidZ},
    {"%ntid.x", Special::NtidX},
    {"%ntid.y", Special::NtidY},
    {"%ntid.z", Special::NtidZ},
    {"%ctaid.x", Special::CtaidX},
    {"%ctaid.y", Special::CtaidY},
    {"%ctaid.z", Special::CtaidZ},
    {"%nctaid.x", Special::NctaidX},
    {"%nctaid.y", Special::NctaidY},
    {"%nctaid.z", Special::NctaidZ},
    {"%laneid", Special::Laneid},
    {"%warpid", Special::Warpid},
    {"%nwarpid", Special::Nwarpid},
    {"%lanemask_eq", Special::LanemaskEq},
    {"%lanemask_le", Special::LanemaskLe},
    {"%lanemask_lt", Special::LanemaskLt},
    {"%lanemask_ge", Special::LanemaskGe},
    {"%lanemask_gt", Special::LanemaskGt},
    {"%smid", Special::Smid},
    {"%nsmid", Special::Nsmid},
    {"%gridid", Special::Gridid},
    {"%dynamic_smem_size", Special::DynamicShared},
    {"%total_smem_size", Special::TotalShared},
    {"%aggr_smem_size", Special::TotalShared},
    // A cluster is one block.
    {"%cluster_ctaid.x", Special::Zero},
    {"%cluster_ctaid.y", Special::Zero},
    {"%cluster_ctaid.z", Special::Zero},
    {"%cluster_nctaid.x", Special::One},
    {"%cluster_nctaid.y", Special::One},
    {"%cluster_nctaid.z", Special::One},
    {"%cluster_ctarank", Special::Zero},
    {"%cluster_nctarank", Special::One},
    {"%clusterid.x", Special::CtaidX},
    {"%clusterid.y", Special::CtaidY},
    {"%clusterid.z", Special::CtaidZ},
    {"%nclusterid.x", Special::NctaidX},
    {"%nclusterid.y", Special::NctaidY},
    {"%nclusterid.z", Special::NctaidZ},
};

} // namespace

uint32_t Decoder::read(const Operand &operand, Type type) {
  unsigned bits = bitsOf(type);
  if (bits && type != Type::Predicate && bits < 8)
    bits = 8;
  switch (operand.kind) {
  case Operand::Register: {
    const Register &reg = frame->function->registers[operand.index];
    uint32_t offset = frame->registers[operand.index];
    if ((reg.type == Type::Predicate) != (type == Type::Predicate)) {
      fail("expected " + std::string(type == Type::Predicate ? "a predicate" : "a number") + ", got '" + operand.name + "'");
      return offset;
    }
    if (operand.negated) {
      if (type != Type::Predicate)
        fail("expected no '!' before '" + operand.name + "'");
      uint32_t result = temporary();
      emit(invertPredicate, result, offset);
      return result;
    }
    unsigned own = bitsOf(reg.type);
    if (own == bits)
      return offset;
    if (own < bits) {
      fail("expected a register of " + std::to_string(bits) + " bits, got '" + operand.name + "' of " + std::to_string(own));
      return offset;
    }
    uint32_t result = temporary();
    narrow(result, bits, offset, own);
    return result;
  }
  case Operand::Special: {
    unsigned own = 32;
    uint32_t offset = 0;
    if (operand.name == "%clock" || operand.name == "%clock64" || operand.name == "%clock_hi" || operand.name == "%globaltimer" ||
        operand.name == "%globaltimer_lo" || operand.name == "%globaltimer_hi") {
      if (operand.name.find("_hi") != std::string::npos)
        return constant(0, bits / 8);
      offset = temporary();
      emit(readClock, offset).flags = operand.name[1] == 'g';
      own = 64;
    } else if (operand.name == "%is_explicit_cluster" && type == Type::Predicate) {
      return constant(0, 0);
    } else if (operand.name.rfind("%envreg", 0) == 0 || operand.name.rfind("%pm", 0) == 0) {
      return constant(0, std::max(bits / 8, 1u));
    } else {
      auto row = std::find_if(std::begin(specialTable), std::end(specialTable),
                              [&](const SpecialRow &row) { return operand.name == row.name; });
      if (row == std::end(specialTable)) {
        fail("unknown register '" + operand.name + "'");
        return 0;
      }
      auto [it, fresh] = specials.try_emplace(row->special, 0);
      if (fresh) {
        it->second = allocate(32);
        kernel.specials.push_back({it->second, row->special});
      }
      offset = it->second;
    }
    if (type == Type::Predicate) {
      fail("expected a predicate, got '" + operand.name + "'");
      return 0;
    }
    if (own == bits)
      return offset;
    uint32_t result = temporary();
    emit(widenHandler(own, bits, false), result, offset);
    return result;
  }
  case Operand::Integer:
    if (type == Type::Predicate)
      return constant(operand.value ? allLanes : 0, 0);
    if (isFloat(type) && bits != 16) {
      fail("expected a floating-point number, got an integer");
      return 0;
    }
    return constant(operand.value, bits / 8);
  case Operand::Single:
  case Operand::Double: {
    uint64_t value = operand.value;
    if (bits == 64 && operand.kind == Operand::Single) {
      uint32_t narrow = uint32_t(value);
      float single;
      std::memcpy(&single, &narrow, sizeof single);
      double wide = single;
      std::memcpy(&value, &wide, sizeof value);
    } else if (bits == 32 && operand.kind == Operand::Double) {
      double wide;
      std::memcpy(&wide, &value, sizeof wide);
      auto single = float(wide);
      value = 0;
      std::memcpy(&value, &single, sizeof single);
    } else if (bits != 32 && bits != 64) {
      fail("expected a number of " + std::to_string(bits) + " bits, got a floating-point one");
    }
    return constant(value, bits / 8);
  }
  case Operand::Name: {
    const Place *place = find(operand.name);
    if (!place) {
      fail("unknown name '" + operand.name + "'");
      return 0;
    }
    if (bits != 32 && bits != 64) {
      fail("expected a register of 32 or 64 bits for the address of '" + operand.name + "'");
      return 0;
    }
    return constant(place->address, bits / 8);
  }
  case Operand::Sink:
  case Operand::Address:
  case Operand::Vector:
  case Operand::Pair:
    break;
  }
  fail("expected a register or a number");
  return 0;
}

uint32_t Decoder::write(const Operand &operand, Type type) {
  unsigned bits = type == Type::Predicate ? 1 : std::max(bitsOf(type), 8u);
  if (operand.kind == Operand::Sink)
    return temporary();
  if (operand.kind != Operand::Register || operand.negated) {
    fail("expected a register to write to");
    return 0;
  }
  const Register &reg = frame->function->registers[operand.index];
  uint32_t offset = frame->registers[operand.index];
  if ((reg.type == Type::Predicate) != (type == Type::Predicate)) {
    fail("expected " + std::string(type == Type::Predicate ? "a predicate" : "a number") + ", got '" + operand.name + "'");
    return offset;
  }
  unsigned own = bitsOf(reg.type);
  if (own == bits)
    return offset;
  if (own < bits) {
    fail("expected a register of " + std::to_string(bits) + " bits, got '" + operand.name + "' of " + std::to_string(own));
    return offset;
  }
  uint32_t result = temporary();
  emitAfter(widenHandler(bits, own, isSigned(type)), offset, result);
  return result;
}

const Place *Decoder::find(const std::string &name) {
  if (auto it = frame->places.find(name); it != frame->places.end())
    return &it->second;
  auto it = modulePlaces.find(name);
  if (it == modulePlaces.end())
    return nullptr;
  if (it->second.space == Space::Shared)
    for (Kernel::SharedVariable &shared : kernel.shared)
      if (shared.name == name && !shared.used) {
        shared.used = true;
        if (!shared.dynamic)
          countShared(shared.end - shared.begin, shared.align);
      }
  return &it->second;
}

std::vector<uint32_t> Decoder::readAll(const Operand &operand, Type type) {
  if (operand.kind != Operand::Vector)
    return {read(operand, type)};
  std::vector<uint32_t> result;
  for (const Operand &element : operand.elements)
    result.push_back(read(element, type));
  return result;
}

std::vector<uint32_t> Decoder::writeAll(const Operand &operand, Type type) {
  if (operand.kind != Operand::Vector)
    return {write(operand, type)};
  std::vector<uint32_t> result;
  for (const Operand &element : operand.elements)
    result.push_back(write(element, type));
  return result;
}

uint32_t Decoder::list(const std::vector<uint32_t> &registers) {
  auto result = uint32_t(kernel.lists.size());
  kernel.lists.insert(kernel.lists.end(), registers.begin(), registers.end());
  return result;
}

bool Decoder::immediate(const Operand &operand, int64_t &value) {
  if (operand.kind != Operand::Integer)
    return fail("expected an integer that is known");
  value = int64_t(operand.value);
  return true;
}

bool Decoder::address(const Operand &operand, Space &space, uint32_t &base, int64_t &offset) {
  if (operand.kind != Operand::Address)
    return fail("expected an address in brackets");
  const Operand &inner = operand.elements[0];
  offset = int64_t(operand.value);
  if (inner.kind == Operand::Name) {
    const Place *found = find(inner.name);
    if (!found)
      return fail("unknown name '" + inner.name + "'");
    Place place = *found;
    if (space == Space::Parameter && place.space == Space::Local) // a parameter of a call
      space = Space::Local;
    else if (space == Space::Generic)
      space = place.space;
    bool same = place.space == space || (space == Space::Global && place.space == Space::Constant) ||
                (space == Space::Constant && place.space == Space::Global);
    if (!same)
      return fail("'" + inner.name + "' is in another state space");
    base = constant(place.address, 8);
    return true;
  }
  if (inner.kind == Operand::Integer) {
    base = constant(inner.value, 8);
    return true;
  }
  if (inner.kind != Operand::Register)
    return fail("expected a register or a name in brackets");
  unsigned own = bitsOf(frame->function->registers[inner.index].type);
  if (own == 64) {
    base = read(inner, Type::B64);
    return true;
  }
  if (own != 32)
    return fail("expected an address of 32 or 64 bits");
  base = temporary();
  emit(widenHandler(32, 64, false), base, read(inner, Type::B32));
  return true;
}

//===----------------------------------------------------------------------===//
// Collectives
//===----------------------------------------------------------------------===//

void makeCollective(Decoder &decoder, uint32_t members) {
  decoder.code().kind = Code::Collective;
  decoder.code().members = members;
}
void makeAligned(Decoder &decoder) {
  decoder.code().kind = Code::Collective;
  decoder.code().aligned = true;
}

//===----------------------------------------------------------------------===//
// Functions and control flow
//===----------------------------------------------------------------------===//

namespace {

const OpcodeTable &opcodes() {
  static const OpcodeTable table = [] {
    OpcodeTable table;
    addIntegerOpcodes(table);
    addFloatOpcodes(table);
    addConversionOpcodes(table);
    addMemoryOpcodes(table);
    addCollectiveOpcodes(table);
    return table;
  }();
  return table;
}

void nothing(Warp &, const Step &, Mask) {}
void trap(Warp &warp, const Step &step, Mask active) {
  failAt(warp, step.code, unsigned(__builtin_ctz(active)), Fault::Trap, "trap");
}

} // namespace

bool Decoder::decode(const Function &entry) {
  kernel.name = entry.name;
  for (const char *directive : {"maxntid", "reqntid"})
    if (auto it = entry.directives.find(directive); it != entry.directives.end()) {
      uint32_t threads = 1;
      for (uint32_t extent : it->second)
        threads *= extent;
      kernel.info.maxThreads = threads;
      kernel.info.exactThreads = directive[0] == 'r';
    }
  Frame top;
  uint64_t size = 0;
  for (const Variable &parameter : entry.parameters) {
    size = (size + parameter.align - 1) / parameter.align * parameter.align;
    kernel.info.parameterOffsets.push_back(uint32_t(size));
    kernel.info.parameterBytes.push_back(uint32_t(parameter.bytes));
    top.places[parameter.name] = {Space::Parameter, size};
    size += parameter.bytes;
  }
  if (size > 32764)
    return fail("expected at most 32764 bytes of parameters, got " + std::to_string(size));
  kernel.parametersSize = uint32_t(size);
  if (!decodeBody(entry, top))
    return false;
  Code end;
  end.kind = Code::Exit;
  end.first = uint32_t(kernel.steps.size());
  end.source = entry.instructions.empty() ? nullptr : &entry.instructions.back();
  kernel.code.push_back(end);
  return true;
}

bool Decoder::decodeBody(const Function &function, Frame &own) {
  if (calls.size() > 32 || std::find(calls.begin(), calls.end(), &function) != calls.end())
    return fail("unsupported: recursion of '" + function.name + "'");
  calls.push_back(&function);
  Frame *outer = frame;
  frame = &own;
  own.function = &function;
  for (const Register &reg : function.registers)
    own.registers.push_back(allocate(bitsOf(reg.type)));
  for (const Variable &variable : function.variables) {
    if (variable.space == Space::Shared) {
      if (auto it = modulePlaces.find(variable.name); it != modulePlaces.end())
        continue;
      bool known = false;
      for (const Kernel::SharedVariable &shared : kernel.shared)
        if (shared.name == variable.name) {
          own.places[variable.name] = {Space::Shared, shared.begin};
          known = true;
        }
      if (known)
        continue;
      // Sixteen bytes or more between variables: who runs over an end shall not hit the next.
      uint64_t align = std::max<uint64_t>(variable.align, 16);
      uint64_t begin = (kernel.sharedEnd + align - 1) / align * align;
      if (variable.external) {
        kernel.shared.push_back({variable.name, dynamicSharedStart, dynamicSharedStart, variable.align, true, true});
        own.places[variable.name] = {Space::Shared, dynamicSharedStart};
        continue;
      }
      kernel.shared.push_back({variable.name, begin, begin + variable.bytes, variable.align, false, true});
      countShared(variable.bytes, variable.align);
      kernel.sharedEnd = begin + variable.bytes + 16;
      own.places[variable.name] = {Space::Shared, begin};
    } else {
      uint64_t begin = (kernel.info.localBytes + variable.align - 1) / variable.align * variable.align;
      kernel.info.localBytes = uint32_t(begin + variable.bytes);
      own.places[variable.name] = {Space::Local, begin};
    }
  }
  for (const Instruction &instruction : function.instructions) {
    own.starts.push_back(uint32_t(kernel.code.size()));
    if (!decodeInstruction(instruction))
      return false;
  }
  own.starts.push_back(uint32_t(kernel.code.size()));
  auto place = [&](const std::string &label, uint32_t &result) {
    auto it = function.labels.find(label);
    if (it == function.labels.end())
      return false;
    result = own.starts[it->second];
    return true;
  };
  for (auto &[code, label] : own.jumps) {
    if (Code &jump = kernel.code[code]; jump.kind == Code::BranchTable) {
      auto list = function.branchTargets.find(label);
      source = jump.source;
      if (list == function.branchTargets.end())
        return fail("unknown list of targets '" + label + "'");
      jump.target = uint32_t(kernel.lists.size());
      jump.tableSize = uint32_t(list->second.size());
      for (const std::string &target : list->second) {
        kernel.lists.push_back(0);
        if (!place(target, kernel.lists.back()))
          return fail("unknown label '" + target + "'");
      }
    } else if (!place(label, jump.target)) {
      source = jump.source;
      return fail("unknown label '" + label + "'");
    }
  }
  for (uint32_t code : own.returns)
    kernel.code[code].target = own.starts.back();
  frame = outer;
  calls.pop_back();
  return true;
}

void Decoder::countShared(uint64_t bytes, uint64_t align) {
  kernel.info.sharedBytes = uint32_t((kernel.info.sharedBytes + align - 1) / align * align + bytes);
}

void Decoder::push() {
  for (Step &step : after)
    kernel.steps.push_back(step);
  after.clear();
  current.count = uint32_t(kernel.steps.size()) - current.first;
  kernel.code.push_back(current);
}

bool Decoder::decodeInstruction(const Instruction &instruction) {
  source = &instruction;
  current = Code();
  current.source = &instruction;
  current.first = uint32_t(kernel.steps.size());
  usedTemporaries = 0;
  after.clear();
  modifiers.reset(instruction.modifiers);
  if (instruction.guard.kind == Operand::Register) {
    current.guard = int32_t(frame->registers[instruction.guard.index]);
    current.guardNegated = instruction.guard.negated;
  }
  if (instruction.opcode == "call")
    return decodeCall();
  bool handled = false;
  if (!decodeControl(handled))
    return false;
  if (!handled) {
    auto it = opcodes().find(instruction.opcode);
    if (it == opcodes().end())
      return fail("unknown opcode '" + instruction.opcode + "'");
    if (!it->second(*this) || !error.empty() || !finished())
      return false;
  }
  if (!error.empty())
    return false;
  push();
  return true;
}

bool Decoder::decodeControl(bool &handled) {
  const std::string &opcode = source->opcode;
  handled = true;
  if (opcode == "bra") {
    modifiers.take("uni");
    if (!expectOperands(1) || !finished())
      return false;
    if (operands()[0].kind != Operand::Name)
      return fail("expected a label");
    current.kind = Code::Branch;
    frame->jumps.push_back({uint32_t(kernel.code.size()), operands()[0].name});
    return true;
  }
  if (opcode == "brx") {
    modifiers.take("uni");
    if (!modifiers.take("idx") || !expectOperands(2) || !finished())
      return unsupported();
    if (operands()[1].kind != Operand::Name)
      return fail("expected a list of targets");
    current.kind = Code::BranchTable;
    current.members = read(0, Type::B32);
    frame->jumps.push_back({uint32_t(kernel.code.size()), operands()[1].name});
    return true;
  }
  if (opcode == "ret" || opcode == "exit") {
    modifiers.take("uni");
    if (!expectOperands(0) || !finished())
      return false;
    if (opcode == "ret" && calls.size() > 1) {
      current.kind = Code::Branch;
      frame->returns.push_back(uint32_t(kernel.code.size()));
    } else
      current.kind = Code::Exit;
    return true;
  }
  if (opcode == "bar" || opcode == "barrier") {
    bool aligned = opcode == "bar";
    if (modifiers.take("warp")) {
      if (!modifiers.take("sync") || !expectOperands(1) || !finished())
        return unsupported();
      makeCollective(*this, read(0, Type::B32));
      current.warpBarrier = true;
      current.synchronising = true;
      return true;
    }
    if (modifiers.take("cluster")) { // of one block, whose threads all take part
      aligned = modifiers.take("aligned");
      bool arrive = modifiers.take("arrive"), wait = modifiers.take("wait");
      modifiers.takeOneOf({"acquire", "release", "relaxed"});
      if (arrive == wait || !finished())
        return unsupported();
      current.synchronising = true;
      if (arrive) { // the wait is the barrier
        emit(nothing);
        return true;
      }
      current.kind = Code::Barrier;
      current.aligned = aligned;
      current.members = constant(1u << 16, 4);
      return true;
    }
    modifiers.take("cta");
    std::string_view action = modifiers.takeOneOf({"sync", "arrive", "red"});
    aligned |= modifiers.take("aligned");
    current.kind = Code::Barrier;
    current.aligned = aligned;
    current.synchronising = true;
    size_t first = 0;
    uint16_t flags = 0;
    if (action == "red") {
      std::string_view operation = modifiers.takeOneOf({"popc", "and", "or"});
      Type type = modifiers.type();
      if (operation.empty() || type != (operation == "popc" ? Type::U32 : Type::Predicate) || !expectOperands(3, 4))
        return unsupported();
      flags = operation == "popc" ? BarrierPopc : operation == "and" ? BarrierAnd : BarrierOr;
      first = 1;
      uint32_t argument = read(count() - 1, Type::Predicate), result = write(0, type);
      emit(nothing, result, argument).flags = flags;
    } else if (action == "arrive") {
      if (!expectOperands(2))
        return false;
      emit(nothing).flags = BarrierArrive;
    } else if (action != "sync" || !expectOperands(1, 2))
      return action.empty() ? unsupported() : false;
    if (!finished())
      return false;
    // Steps of their own would run after the barrier.
    size_t steps = kernel.steps.size();
    current.members = read(first, Type::B32);
    if (count() > first + 1 + (flags && flags != BarrierArrive))
      current.threads = int32_t(read(first + 1, Type::B32));
    return kernel.steps.size() == steps || fail("unsupported: the operands of this barrier");
  }
  if (opcode == "trap") {
    emit(trap);
    return expectOperands(0) && finished();
  }
  if (opcode == "membar" || opcode == "fence")
    current.synchronising = true;
  handled = false;
  return true;
}

bool Decoder::decodeCall() {
  modifiers.take("uni");
  const Operand &callee = operands()[0];
  if (callee.kind != Operand::Name)
    return fail("unsupported: an indirect call");
  const Function *function = module.find(callee.name);
  if (!function)
    return fail("unknown function '" + callee.name + "'");
  if (function->external)
    return fail("external function '" + callee.name + "'");
  if (!finished())
    return false;
  const std::vector<Operand> &results = operands()[1].elements, &arguments = operands()[2].elements;
  if (results.size() != function->results.size() || arguments.size() != function->parameters.size())
    return fail("expected the results and arguments of '" + callee.name + "'");
  Frame inner;
  auto bind = [&](const std::vector<Operand> &actual, const std::vector<Variable> &formal) {
    for (size_t i = 0; i < actual.size(); ++i) {
      auto it = actual[i].kind == Operand::Name ? frame->places.find(actual[i].name) : frame->places.end();
      if (it == frame->places.end() || it->second.space != Space::Local)
        return fail("expected a variable in .param");
      inner.places[formal[i].name] = it->second;
    }
    return true;
  };
  if (!bind(results, function->results) || !bind(arguments, function->parameters))
    return false;
  uint32_t skip = uint32_t(kernel.code.size());
  const Instruction *call = source;
  if (current.guard >= 0) { // lanes that do not call go around it
    current.kind = Code::Branch;
    current.guardNegated = !current.guardNegated;
    push();
  }
  if (!decodeBody(*function, inner))
    return false;
  source = call;
  if (skip < kernel.code.size() && kernel.code[skip].source == call)
    kernel.code[skip].target = uint32_t(kernel.code.size());
  return true;
}

} // namespace aligned::emulator
