//! Links the binary for a machine without an operating system. The one flag that a build script
//! cannot set, `-Crelocation-model=static`, comes from whoever builds it for real.

fn main() {
    println!("cargo::rerun-if-changed=nano.ld");
    println!("cargo::rerun-if-changed=build.rs");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/nano.ld");
    let arguments = ["-nostartfiles", "-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none"];
    for argument in arguments.into_iter().map(str::to_owned).chain([format!("-Wl,-T,{script}")]) {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
}
