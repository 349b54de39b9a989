//! The binary as a user drives it: `vhive node` and its clients, on `sim` (needs nothing but root)
//! and in real microVMs (where the host can).

mod archives;
mod calls;
mod clock;
mod container_faults;
mod cut_short;
mod dashboard;
mod durable;
mod examples;
mod faults;
mod flood;
mod full_disk;
mod kills;
mod kn;
mod kubernetes;
mod lifecycle;
mod load;
mod load_experiments;
mod load_faults;
mod load_peers;
mod load_results;
mod load_ways;
mod microvm;
mod nano;
mod other_machine;
mod runtimes;
mod same_bytes;
mod scene;
mod simulate;
mod snapshot_faults;
mod study;
mod watch;
