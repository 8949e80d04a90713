"""How a run gets done: idempotent jobs, a results folder that is their queue, and workers that any launcher starts.

**Jobs.** A run is a small graph of jobs, each of which writes one file, atomically:

| job | file | ready when |
|---|---|---|
| `Train(key)` | `checkpoints/KEY.safetensors` | a pending cell needs it |
| `Evaluate(training, a..b)` | `progress/KEY.a-b.….safetensors`, all pending cells | the checkpoints are there |
| `Assemble(training)` | `records/CELL.json`, one a cell | all its chunks are there |

Where a chunk of episodes begins and ends is a rule of the device and the number of episodes (`chunks_of`), never of how
many workers there are, and every random draw is seeded by names. So rows are the same whoever computes them.

**Queue.** The results folder is the queue. A job is done when its file is there, taken while its lock is held (a lock
of the system, or a lease with a heartbeat), and free otherwise. A cell is over when it has a record or a note of why it
failed (`failures/CELL.json`). Nothing else is shared, so any number of workers, runs and machines may use one folder.

**Worker.** `while job := queue.claim(): run(job)`. With several cores, a worker shares out the meta-steps of a training
to a pool, and forks copies of itself for the chunks of an evaluation.

**Events.** Each worker appends what it does to a file of its own, `events/RUN/WORKER.jsonl`. The monitor follows these
files: hooks and progress bars hear of them, `bench status` shows them, `--cell-timeout` is measured by them, and the
last event of a worker that died says which cell it was at: that cell fails, and others do the rest.

**After a kill.** A run that is killed loses what it had not saved: its locks are free (`runtime/locks.py`), files are
written whole or not at all (`runtime/atomic_files.py`), and the same command resumes (`engine/training_snapshots.py`,
`queue.py`). Where one worker of a run dies, the cell or training that it was at fails (`processes.py`, `ExitHandler`).

**Launchers** only start workers: in this process, as N processes of this machine, or as N tasks of Ray. Slurm needs
none: a job array of plain `bench run` does it.
"""
