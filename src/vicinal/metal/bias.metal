// Gradient of the relative position bias: one threadgroup an entry and head, which visits every output of the batch in a
// fixed order. An output has at most one key at the entry's relative position.
constant constexpr int BIAS_THREADS = 128;

template <typename T, int ND, int D, int DV, bool DOCUMENTS>
[[kernel]] void attend_back_bias(
    const device T* query [[buffer(0)]], const device T* key [[buffer(1)]], const device T* value [[buffer(2)]],
    const device float* bias [[buffer(3)]], const device T* grad_out [[buffer(4)]],
    const device float* lse [[buffer(5)]], const device float* delta [[buffer(6)]],
    device float* grad_bias [[buffer(7)]], const device int4* table [[buffer(8)]],
    const SPACE Geometry<ND>* geometries [[buffer(9)]], constant float& scale [[buffer(10)]],
    uint3 at [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]], uint simd [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  threadgroup float sums[BIAS_THREADS / 32];
  const SPACE Geometry<ND>& common = *geometries;
  const int entry = at.x, head = at.y, kv_head = head / (common.heads / common.kv_heads);
  const float added = bias[head * common.relative_count + entry];
  int wanted[ND], rest = entry;
  UNROLL
  for (int d = 0; d < ND; d++) {
    wanted[d] = rest / common.relative_stride[d];
    rest -= wanted[d] * common.relative_stride[d];
  }
  float sum = 0;
  // The list of rows ends with how many there are.
  const long batch = DOCUMENTS ? 1 : common.batch;
  const int row_count = DOCUMENTS ? table[2 * common.batch + 1].x : common.row_count;
  for (long i = thread_index; i < batch * row_count; i += BIAS_THREADS) {
    const Document<ND> document = document_of_row<ND, DOCUMENTS>(geometries, table, i % row_count, i / row_count);
    const SPACE Geometry<ND>& g = *document.geometry;
    int rows[ND], token = 0;
    unflatten<ND>(document.index, g.rows, rows);
    bool sees = true;
    UNROLL
    for (int d = 0; d < ND; d++) {
      const int4 window = table[g.row_table[d] + rows[d]];
      const int slot = wanted[d] - window.w;
      sees = sees && slot >= 0 && slot < window.y;
      token = token * g.column_room[d] + window.x + slot * g.column_step[d];
    }
    if (!sees) continue;
    const long place = vector_at(document.rows, token_of(g, document.index), g.heads, head, 1);
    const long other = vector_at(document.columns, token, g.kv_heads, kv_head, 1);
    sum += slope<T, D, DV>(query + place * D, key + other * D, value + other * DV, grad_out + place * DV,
                           scale * M_LOG2E_F, added, lse[place], delta[place]).y;
  }
  sum = simd_sum(sum);
  if (lane == 0) sums[simd] = sum;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (thread_index != 0) return;
  float total = 0;
  for (int s = 0; s < BIAS_THREADS / 32; s++) total += sums[s];
  grad_bias[head * common.relative_count + entry] = total;
}
