"""How a run gets done: idempotent jobs, a results folder that is their queue, and workers that any launcher starts.

| job | file, written atomically | ready when |
|---|---|---|
| `Train` | `checkpoints/KEY.safetensors` | a pending cell needs it |
| `Evaluate` a chunk of episodes | `progress/KEY.a-b.….safetensors`, all pending cells | the checkpoints are there |
| `Assemble` | `records/CELL.json`, one a cell | all chunks are there |

A job is done when its file is there, taken while its lock is held, and free otherwise (`queue`); a cell is over when it
has a record or a note of why it failed. A `worker` claims jobs until none is left, and appends `events` to a file of
its own, which a `monitor` follows: for hooks and progress, `bench status`, `--cell-timeout`, and to tell which cell a
worker was at when it died. `launchers` only start workers. Chunks are a rule of the device and the number of episodes,
and every random draw is seeded by names, so rows are the same whoever computes them.
"""
