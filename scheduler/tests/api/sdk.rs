//! The public `miosa` Python SDK, unmodified, against a served router.
//!
//! `ROOST_TEST_SDK_PYTHON` names a Python that has it; else a virtual environment is made below the target
//! directory, once, from the package registry.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::world::World;

const PACKAGE: &str = "miosa==2.19.2";
const HOW: &str =
    "make a virtual environment with `pip install miosa==2.19.2` and set ROOST_TEST_SDK_PYTHON to its python";

/// A Python with the SDK.
fn python() -> PathBuf {
    if let Some(path) = std::env::var_os("ROOST_TEST_SDK_PYTHON") {
        return path.into();
    }
    let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join("miosa-sdk");
    let python = home.join("bin/python");
    let has_sdk = |python: &Path| {
        Command::new(python).args(["-c", "import miosa"]).output().is_ok_and(|out| out.status.success())
    };
    if !has_sdk(&python) {
        let made = Command::new("python3").args(["-m", "venv"]).arg(&home).status();
        assert!(made.is_ok_and(|status| status.success()), "python3 -m venv failed: {HOW}");
        let installed = Command::new(&python).args(["-m", "pip", "install", "--quiet", PACKAGE]).status();
        assert!(installed.is_ok_and(|status| status.success()), "pip install {PACKAGE} failed: {HOW}");
    }
    python
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_unmodified_python_sdk_is_served() {
    let world = World::start().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = world.router.clone();
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    let key = world.key.clone();
    let run = tokio::task::spawn_blocking(move || {
        Command::new(python())
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/api/sdk.py"))
            .env("MIOSA_API_KEY", key)
            .env("MIOSA_BASE_URL", format!("http://{address}"))
            .env_remove("http_proxy")
            .env_remove("https_proxy")
            .output()
            .unwrap()
    });
    let output = run.await.unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && stdout.ends_with("done\n"), "{stdout}\n{stderr}");
}
