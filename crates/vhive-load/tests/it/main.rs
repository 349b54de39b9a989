//! The engine against servers of the tests' own, on loopback.

mod faults;
mod loops;
mod peer;
