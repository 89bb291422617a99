"""The process and its machine: device and threads, other processes, signals, progress, log, whole files. Imports
`errors` only."""
