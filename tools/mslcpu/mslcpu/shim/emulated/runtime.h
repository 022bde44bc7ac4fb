// Entry points of the runtime. The pass fills `site` with the number of the caller's source position.
#pragma once
#define MSL_RUNTIME extern "C" __attribute__((convergent, nomerge))
MSL_RUNTIME void __msl_barrier(uint fences, uint site);
MSL_RUNTIME void __msl_simd(uint operation, uint type, uint size, uint operand, __private void* value,
                            uint site);
MSL_RUNTIME ulong __msl_threadgroup(uint id, ulong size, uint element, const __constant char* name,
                                    uint site);
MSL_RUNTIME uint __msl_atomic(ulong address, uint operation, uint type, uint size, uint space, uint value,
                              uint expected, uint site);
MSL_RUNTIME uint __msl_position(uint which, uint component);
MSL_RUNTIME ulong __msl_buffer(uint index);
