//! Compiles the contracts without `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["roost/guest.proto", "roost/dataplane.proto", "roost/host.proto", "roost/local.proto"];
    for file in files {
        println!("cargo:rerun-if-changed=proto/{file}");
    }
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure().build_transport(false).bytes(".roost").compile_fds(descriptors)?;
    Ok(())
}
