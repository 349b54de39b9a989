//! The image store from outside.

#[cfg(test)]
mod build;
#[cfg(test)]
mod layers;
#[cfg(test)]
mod oracle;
#[cfg(test)]
mod registry;
#[cfg(test)]
mod store;
#[cfg(test)]
mod support;
