// Numbers shared by the shim (device side) and the runtime (host side).
#pragma once

enum MslOperation : unsigned {
  MSL_SYNC,  // lanes meet; nothing is ordered
  MSL_FENCE,
  MSL_SHUFFLE,
  MSL_SHUFFLE_UP,
  MSL_SHUFFLE_DOWN,
  MSL_SHUFFLE_XOR,
  MSL_ROTATE,
  MSL_BROADCAST_FIRST,
  MSL_SUM,
  MSL_PRODUCT,
  MSL_MIN,
  MSL_MAX,
  MSL_AND,
  MSL_OR,
  MSL_XOR,
  MSL_PREFIX_SUM,
  MSL_PREFIX_SUM_EXCLUSIVE,
  MSL_PREFIX_PRODUCT,
  MSL_PREFIX_PRODUCT_EXCLUSIVE,
  MSL_BALLOT,
  MSL_MATRIX_MULTIPLY,
  MSL_QUAD = 64,  // added to one of the above: four lanes instead of a SIMD-group
};

enum MslType : unsigned { MSL_FLOAT, MSL_INT, MSL_UINT, MSL_LONG, MSL_ULONG };

enum MslAtomic : unsigned {
  MSL_LOAD,
  MSL_STORE,
  MSL_COMPARE_EXCHANGE,
  MSL_EXCHANGE,
  MSL_FETCH_ADD,
  MSL_FETCH_SUB,
  MSL_FETCH_MAX,
  MSL_FETCH_MIN,
  MSL_FETCH_OR,
  MSL_FETCH_AND,
  MSL_FETCH_XOR,
};

// Address spaces as clang's fake address space map numbers them.
enum MslSpace : unsigned { MSL_PRIVATE, MSL_DEVICE, MSL_CONSTANT, MSL_THREADGROUP, MSL_GENERIC };

enum MslFence : unsigned { MSL_FENCE_DEVICE = 1, MSL_FENCE_THREADGROUP = 2 };

enum MslPosition : unsigned {
  MSL_THREAD_IN_GRID,
  MSL_THREAD_IN_GROUP,
  MSL_THREAD_INDEX,
  MSL_GROUP_IN_GRID,
  MSL_THREADS_PER_GROUP,
  MSL_DISPATCH_THREADS_PER_GROUP,
  MSL_GROUPS_PER_GRID,
  MSL_THREADS_PER_GRID,
  MSL_SIMDGROUP_INDEX,
  MSL_SIMDGROUPS_PER_GROUP,
  MSL_SIMD_WIDTH,
  MSL_LANE,
  MSL_QUAD_LANE,
  MSL_QUAD_INDEX,
  MSL_QUADS_PER_GROUP,
  MSL_GRID_ORIGIN,
};
