// LLVM plugin, last in the pipeline. Sends every access to device, constant, threadgroup and generic memory
// through the runtime, tells the runtime the source position of its callers, and counts the operations of
// every basic block that runs.
#include <map>
#include <set>

#include "llvm/IR/DebugInfoMetadata.h"
#include "llvm/IR/IRBuilder.h"
#include "llvm/IR/Instructions.h"
#include "llvm/IR/IntrinsicInst.h"
#include "llvm/IR/Module.h"
#include "llvm/Passes/PassBuilder.h"
#include "llvm/Passes/PassPlugin.h"

using namespace llvm;

namespace {

// Order of the operation counters; Python reads them by name.
enum Operation {
  kAdd32,
  kMul32,
  kFma32,
  kAdd16,
  kMul16,
  kFma16,
  kDivide,
  kSelect,
  kExp,
  kLog,
  kSqrt,
  kTrigonometric,
  kInteger,
  kIntegerMul,
  kIntegerDivide,
  kConvert,
  kBranch,
  kPrivateRead,
  kPrivateWrite,
  kOperations,
};
using Tally = std::array<uint32_t, kOperations>;

unsigned width(Type* type) {
  auto* vector = dyn_cast<FixedVectorType>(type);
  return vector ? vector->getNumElements() : 1;
}

bool in_shim(const DILocation* at, StringRef part = "/shim/") { return at->getFilename().contains(part); }

// Code that stands for one hardware instruction is no work of the kernel's.
bool emulated(const Instruction& instruction) {
  for (const DILocation* at = instruction.getDebugLoc(); at && in_shim(at); at = at->getInlinedAt())
    if (in_shim(at, "/shim/emulated/")) return true;
  return false;
}

bool any_prefix(StringRef name, ArrayRef<StringRef> prefixes) {
  return any_of(prefixes, [&](StringRef prefix) { return name.starts_with(prefix); });
}

void count_call(const CallInst& call, Tally& tally) {
  const Function* callee = call.getCalledFunction();
  if (!callee) return;
  StringRef name = callee->getName();
  name.consume_front("llvm.");
  unsigned lanes = width(call.getType());
  bool half = call.getType()->getScalarType()->is16bitFPTy();
  if (any_prefix(name, {"fma.", "fmuladd."}))
    tally[half ? kFma16 : kFma32] += lanes;
  else if (name.starts_with("exp"))
    tally[kExp] += lanes;
  else if (name.starts_with("log"))
    tally[kLog] += lanes;
  else if (name.starts_with("sqrt"))
    tally[kSqrt] += lanes;
  else if (any_prefix(name, {"maxnum", "minnum", "fabs", "copysign", "floor", "rint", "ceil", "trunc"}))
    tally[kSelect] += lanes;
  else if (any_prefix(name, {"smax", "smin", "umax", "umin", "abs"}))
    tally[kInteger] += lanes;
  else if (any_prefix(name, {"sin", "cos", "tan", "pow"}))
    tally[kTrigonometric] += lanes;
}

// Division by a constant is shifts and multiplications.
void count_division(const Instruction& instruction, unsigned lanes, Tally& tally) {
  auto* constant = dyn_cast<Constant>(instruction.getOperand(1));
  if (constant && constant->getType()->isVectorTy()) constant = constant->getSplatValue();
  auto* divisor = dyn_cast_or_null<ConstantInt>(constant);
  if (!divisor) {
    tally[kIntegerDivide] += lanes;
    return;
  }
  tally[kInteger] += 2 * lanes;
  if (!divisor->getValue().isPowerOf2()) tally[kIntegerMul] += lanes;
}

void count_instruction(const Instruction& instruction, bool fused, Tally& tally) {
  Type* type = instruction.getType();
  unsigned lanes = width(type);
  bool half = type->getScalarType()->is16bitFPTy();
  switch (instruction.getOpcode()) {
    case Instruction::FAdd:
    case Instruction::FSub:
      tally[fused ? (half ? kFma16 : kFma32) : (half ? kAdd16 : kAdd32)] += lanes;
      break;
    case Instruction::FMul:
      if (!fused) tally[half ? kMul16 : kMul32] += lanes;
      break;
    case Instruction::FDiv:
    case Instruction::FRem:
      tally[kDivide] += lanes;
      break;
    case Instruction::FCmp:
      tally[kSelect] += lanes;
      break;
    case Instruction::Select:
      tally[type->isFPOrFPVectorTy() ? kSelect : kInteger] += lanes;
      break;
    case Instruction::Add:
    case Instruction::Sub:
    case Instruction::And:
    case Instruction::Or:
    case Instruction::Xor:
    case Instruction::Shl:
    case Instruction::LShr:
    case Instruction::AShr:
    case Instruction::ICmp:
      tally[kInteger] += lanes;
      break;
    case Instruction::Mul:
      tally[kIntegerMul] += lanes;
      break;
    case Instruction::SDiv:
    case Instruction::UDiv:
    case Instruction::SRem:
    case Instruction::URem:
      count_division(instruction, lanes, tally);
      break;
    case Instruction::FPExt:
    case Instruction::FPTrunc:
    case Instruction::SIToFP:
    case Instruction::UIToFP:
    case Instruction::FPToSI:
    case Instruction::FPToUI:
      tally[kConvert] += lanes;
      break;
    case Instruction::Br:
      tally[kBranch] += cast<BranchInst>(instruction).isConditional();
      break;
    case Instruction::Switch:
      tally[kBranch]++;
      break;
    case Instruction::Call:
      count_call(cast<CallInst>(instruction), tally);
      break;
    default:
      break;
  }
}

// Additions that become one instruction with the product they add, and those products.
std::set<const Instruction*> fused_pairs(const BasicBlock& block) {
  std::set<const Instruction*> fused;
  for (const Instruction& sum : block) {
    bool adds = sum.getOpcode() == Instruction::FAdd || sum.getOpcode() == Instruction::FSub;
    if (!adds || !sum.hasAllowContract()) continue;
    for (const Value* operand : sum.operands()) {
      auto* product = dyn_cast<BinaryOperator>(operand);
      bool fits = product && product->getOpcode() == Instruction::FMul && product->hasOneUse() &&
                  product->hasAllowContract() && !fused.count(product);
      if (!fits) continue;
      fused.insert({product, &sum});
      break;
    }
  }
  return fused;
}

class Instrumenter {
 public:
  explicit Instrumenter(Module& module)
      : module_(module),
        layout_(module.getDataLayout()),
        int32_(Type::getInt32Ty(module.getContext())),
        int64_(Type::getInt64Ty(module.getContext())),
        pointer_(PointerType::get(module.getContext(), 0)) {
    access_ = module.getOrInsertFunction("__msl_access", pointer_, pointer_, int32_, int32_);
    range_ = module.getOrInsertFunction("__msl_access_range", Type::getVoidTy(module.getContext()), pointer_,
                                        int64_, int32_, int32_);
  }

  void run(bool hooks) {
    for (Function& function : module_) {
      if (function.isDeclaration()) continue;
      if (hooks) count_blocks(function);
      for (Instruction* instruction : shared_accesses(function)) {
        if (hooks) hook(*instruction);
        // Misaligned accesses are reported by the hook; the host must survive them.
        unalign(*instruction);
      }
      if (hooks) locate_calls(function);
      forget_attributes(function);
    }
    emit_sites();
    if (hooks) emit_counts();
  }

 private:
  uint32_t site(const Instruction& instruction) {
    std::string name = "?";
    if (const DILocation* at = instruction.getDebugLoc()) {
      while (in_shim(at) && at->getInlinedAt()) at = at->getInlinedAt();
      name = (at->getFilename() + ":" + Twine(at->getLine()) + ":" + Twine(at->getColumn())).str();
    }
    auto [found, fresh] = numbers_.try_emplace(name, sites_.size());
    if (fresh) sites_.push_back(name);
    return found->second;
  }

  static Value* address(Instruction& instruction) {
    if (auto* load = dyn_cast<LoadInst>(&instruction)) return load->getPointerOperand();
    if (auto* store = dyn_cast<StoreInst>(&instruction)) return store->getPointerOperand();
    return nullptr;
  }

  static std::vector<Instruction*> shared_accesses(Function& function) {
    std::vector<Instruction*> found;
    for (BasicBlock& block : function)
      for (Instruction& instruction : block) {
        Value* at = address(instruction);
        if (isa<MemIntrinsic>(instruction) || (at && at->getType()->getPointerAddressSpace()))
          found.push_back(&instruction);
      }
    return found;
  }

  Value* redirect(IRBuilder<>& builder, Value* at, uint64_t size, unsigned alignment, bool store,
                  uint32_t where) {
    unsigned space = at->getType()->getPointerAddressSpace();
    uint64_t info = size << 8 | alignment << 4 | space << 1 | (store ? 1 : 0);
    Value* checked =
        builder.CreateCall(access_, {builder.CreateAddrSpaceCast(at, pointer_),
                                     ConstantInt::get(int32_, info), ConstantInt::get(int32_, where)});
    return builder.CreateAddrSpaceCast(checked, at->getType());
  }

  void hook(Instruction& instruction) {
    if (auto* copy = dyn_cast<MemIntrinsic>(&instruction)) {
      if (isa<MemTransferInst>(copy)) hook_copy(*copy, 1, false);
      hook_copy(*copy, 0, true);
      return;
    }
    bool store = isa<StoreInst>(instruction);
    Type* type = store ? instruction.getOperand(0)->getType() : instruction.getType();
    uint64_t size = layout_.getTypeStoreSize(type);
    // Vectors of three take the room of four.
    if (width(type) == 3) size = layout_.getTypeStoreSize(type->getScalarType()) * 4;
    unsigned alignment =
        Log2(store ? cast<StoreInst>(instruction).getAlign() : cast<LoadInst>(instruction).getAlign());
    IRBuilder<> builder(&instruction);
    Value* checked = redirect(builder, address(instruction), size, alignment, store, site(instruction));
    instruction.setOperand(store ? 1 : 0, checked);
  }

  void hook_copy(MemIntrinsic& copy, unsigned operand, bool store) {
    Value* at = copy.getArgOperand(operand);
    unsigned space = at->getType()->getPointerAddressSpace();
    if (!space) return;
    IRBuilder<> builder(&copy);
    uint32_t where = site(copy);
    MaybeAlign promised = operand ? cast<MemTransferInst>(copy).getSourceAlign() : copy.getDestAlign();
    unsigned alignment = Log2(promised.valueOrOne());
    auto* length = dyn_cast<ConstantInt>(copy.getLength());
    if (length && length->getZExtValue() <= 4096) {
      copy.setArgOperand(operand, redirect(builder, at, length->getZExtValue(), alignment, store, where));
      return;
    }
    uint32_t info = alignment << 4 | space << 1 | (store ? 1 : 0);
    builder.CreateCall(
        range_,
        {builder.CreateAddrSpaceCast(at, pointer_), builder.CreateZExtOrTrunc(copy.getLength(), int64_),
         ConstantInt::get(int32_, info), ConstantInt::get(int32_, where)});
  }

  static void unalign(Instruction& instruction) {
    if (auto* load = dyn_cast<LoadInst>(&instruction)) load->setAlignment(Align(1));
    if (auto* store = dyn_cast<StoreInst>(&instruction)) store->setAlignment(Align(1));
    if (auto* copy = dyn_cast<MemIntrinsic>(&instruction)) copy->setDestAlignment(Align(1));
    if (auto* copy = dyn_cast<MemTransferInst>(&instruction)) copy->setSourceAlignment(Align(1));
  }

  // The runtime's entry points take the site as their last argument.
  void locate_calls(Function& function) {
    for (BasicBlock& block : function)
      for (Instruction& instruction : block) {
        auto* call = dyn_cast<CallInst>(&instruction);
        if (!call || !call->getCalledFunction()) continue;
        StringRef name = call->getCalledFunction()->getName();
        if (name == "__msl_barrier" || name == "__msl_simd" || name == "__msl_threadgroup" ||
            name == "__msl_atomic")
          call->setArgOperand(call->arg_size() - 1, ConstantInt::get(int32_, site(instruction)));
      }
  }

  // Private memory that only carries values to the runtime is no traffic.
  static std::set<const Value*> runtime_values(const Function& function) {
    std::set<const Value*> found;
    for (const BasicBlock& block : function)
      for (const Instruction& instruction : block) {
        auto* call = dyn_cast<CallBase>(&instruction);
        if (!call || !call->getCalledFunction() ||
            !call->getCalledFunction()->getName().starts_with("__msl_"))
          continue;
        for (const Value* argument : call->args())
          if (argument->getType()->isPointerTy()) found.insert(argument->stripInBoundsOffsets());
      }
    return found;
  }

  void count_blocks(Function& function) {
    std::set<const Value*> carried = runtime_values(function);
    for (BasicBlock& block : function) {
      Tally tally{};
      std::set<const Instruction*> fused = fused_pairs(block);
      for (Instruction& instruction : block) {
        Value* at = address(instruction);
        bool own =
            at && !at->getType()->getPointerAddressSpace() && !carried.count(at->stripInBoundsOffsets());
        if (own) tally[isa<LoadInst>(instruction) ? kPrivateRead : kPrivateWrite]++;
        if (!emulated(instruction)) count_instruction(instruction, fused.count(&instruction), tally);
      }
      blocks_.push_back(&block);
      tallies_.push_back(tally);
    }
  }

  // The hooks have effects that the optimiser's findings deny.
  static void forget_attributes(Function& function) {
    for (Attribute::AttrKind kind : {Attribute::Memory, Attribute::NoSync, Attribute::NoFree,
                                     Attribute::WillReturn, Attribute::Speculatable})
      function.removeFnAttr(kind);
    for (Argument& argument : function.args())
      for (Attribute::AttrKind kind : {Attribute::ReadOnly, Attribute::WriteOnly, Attribute::ReadNone,
                                       Attribute::NoAlias, Attribute::NoCapture})
        argument.removeAttr(kind);
  }

  void global(const char* name, Constant* value, bool constant = true) {
    new GlobalVariable(module_, value->getType(), constant, GlobalValue::ExternalLinkage, value, name);
  }

  void emit_sites() {
    std::vector<Constant*> names;
    for (const std::string& name : sites_) {
      Constant* text = ConstantDataArray::getString(module_.getContext(), name);
      names.push_back(new GlobalVariable(module_, text->getType(), true, GlobalValue::PrivateLinkage, text));
    }
    global("msl_sites", ConstantArray::get(ArrayType::get(pointer_, names.size()), names));
    global("msl_sites_length", ConstantInt::get(int64_, names.size()));
  }

  void emit_counts() {
    auto* type = ArrayType::get(int64_, blocks_.size());
    global("msl_block_runs", ConstantAggregateZero::get(type), false);
    GlobalVariable* runs = module_.getNamedGlobal("msl_block_runs");
    for (size_t i = 0; i < blocks_.size(); i++) {
      IRBuilder<> builder(&*blocks_[i]->getFirstInsertionPt());
      Value* at = builder.CreateConstInBoundsGEP2_64(type, runs, 0, i);
      builder.CreateStore(builder.CreateAdd(builder.CreateLoad(int64_, at), ConstantInt::get(int64_, 1)), at);
    }
    std::vector<uint32_t> flat;
    for (const Tally& tally : tallies_) flat.insert(flat.end(), tally.begin(), tally.end());
    global("msl_block_operations", ConstantDataArray::get(module_.getContext(), flat));
    global("msl_blocks", ConstantInt::get(int64_, blocks_.size()));
  }

  Module& module_;
  const DataLayout& layout_;
  Type *int32_, *int64_, *pointer_;
  FunctionCallee access_, range_;
  std::map<std::string, uint32_t> numbers_{{"?", 0}};
  std::vector<std::string> sites_{"?"};
  std::vector<BasicBlock*> blocks_;
  std::vector<Tally> tallies_;
};

struct MslPass : PassInfoMixin<MslPass> {
  static bool isRequired() { return true; }
  PreservedAnalyses run(Module& module, ModuleAnalysisManager&) {
    Instrumenter(module).run(!getenv("MSLCPU_NO_HOOKS"));
    return PreservedAnalyses::none();
  }
};

}  // namespace

extern "C" LLVM_ATTRIBUTE_WEAK PassPluginLibraryInfo llvmGetPassPluginInfo() {
  return {LLVM_PLUGIN_API_VERSION, "mslcpu", "1", [](PassBuilder& builder) {
            builder.registerOptimizerLastEPCallback(
                [](ModulePassManager& manager, OptimizationLevel) { manager.addPass(MslPass()); });
          }};
}
