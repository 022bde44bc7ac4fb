// The walks as their definitions read, one thread a row.

// result[i, s] = scale * x[i] . y[key s of i] + bias
template <typename T, int ND, int D, bool BIAS>
[[kernel]] void dot_walk_plain(const device T* x [[buffer(0)]], const device T* y [[buffer(1)]],
                          const device float* bias [[buffer(2)]], device T* result [[buffer(3)]],
                          const device int4* table [[buffer(4)]], const SPACE Geometry<ND>* geometries [[buffer(5)]],
                          constant float& scale [[buffer(6)]], uint3 at [[thread_position_in_grid]]) {
  const Document<ND> document = document_of_row<ND, false>(geometries, table, at.x, at.z);
  const SPACE Geometry<ND>& g = *document.geometry;
  const int row = document.index, head = at.y, kv_head = head / (g.heads / g.kv_heads);
  const long i = vector_at(document.rows, row, g.heads, head, 1);
  for (Walk<ND> walk(g, table, row); walk.more; walk.next()) {
    const long token = vector_at(document.columns, walk.column(g), g.kv_heads, kv_head, D);
    float score = scale * product<T, D>(x + i * D, y + token);
    if (BIAS) score += bias[head * g.relative_count + walk.relative(g)];
    result[i * g.slot_count + walk.slot(g)] = T(score);
  }
}

// result[i] = sum over s of weights[i, s] * y[key s of i]
template <typename W, typename T, int ND, int D>
[[kernel]] void mix_walk_plain(const device W* weights [[buffer(0)]], const device T* y [[buffer(1)]],
                          device T* result [[buffer(2)]], const device int4* table [[buffer(3)]],
                          const SPACE Geometry<ND>* geometries [[buffer(4)]], uint3 at [[thread_position_in_grid]]) {
  const Document<ND> document = document_of_row<ND, false>(geometries, table, at.x, at.z);
  const SPACE Geometry<ND>& g = *document.geometry;
  const int row = document.index, head = at.y, kv_head = head / (g.heads / g.kv_heads);
  const long i = vector_at(document.rows, row, g.heads, head, 1);
  float sum[D];
  for (int d = 0; d < D; d++) sum[d] = 0;
  for (Walk<ND> walk(g, table, row); walk.more; walk.next()) {
    const device T* from = y + vector_at(document.columns, walk.column(g), g.kv_heads, kv_head, D);
    const float weight = float(weights[i * g.slot_count + walk.slot(g)]);
    for (int d = 0; d < D; d++) sum[d] = fma(weight, float(from[d]), sum[d]);
  }
  for (int d = 0; d < D; d++) result[i * D + d] = T(sum[d]);
}

// result[j] = sum over the outputs i that see key j of weights[i, s] * x[i]. Rows are keys.
template <typename W, typename T, int ND, int D>
[[kernel]] void mix_back_walk_plain(const device W* weights [[buffer(0)]], const device T* x [[buffer(1)]],
                               device T* result [[buffer(2)]], const device int4* table [[buffer(3)]],
                               const SPACE Geometry<ND>* geometries [[buffer(4)]], uint3 at [[thread_position_in_grid]]) {
  const Document<ND> document = document_of_row<ND, false>(geometries, table, at.x, at.z);
  const SPACE Geometry<ND>& g = *document.geometry;
  const int row = document.index, kv_head = at.y, per_kv_head = g.heads / g.kv_heads;
  float sum[D];
  for (int d = 0; d < D; d++) sum[d] = 0;
  for (Walk<ND> walk(g, table, row); walk.more; walk.next()) {
    const int slot = walk.slot_of_output(g, table);
    for (int head = kv_head * per_kv_head; head < (kv_head + 1) * per_kv_head; head++) {
      const long i = vector_at(document.columns, walk.column(g), g.heads, head, 1);
      const float weight = float(weights[i * g.slot_count + slot]);
      for (int d = 0; d < D; d++) sum[d] = fma(weight, float(x[i * D + d]), sum[d]);
    }
  }
  const long to = vector_at(document.rows, row, g.kv_heads, kv_head, D);
  for (int d = 0; d < D; d++) result[to + d] = T(sum[d]);
}
