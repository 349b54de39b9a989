//! The engine against servers of the tests' own, on loopback.

mod faults;
mod flows;
mod loops;
mod methods;
mod omission;
mod peer;
