use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::command::{Output, run, try_run};
use crate::{Leftovers, Machine, eventually, image, orlop_binary};

/// A cluster on a lab machine, removed on drop.
#[derive(Debug)]
pub struct Cluster {
    /// The machine it runs on.
    pub machine: Machine,
    directory: tempfile::TempDir,
    arguments: Vec<String>,
}

impl Cluster {
    /// A cluster that is not up yet.
    pub fn prepare(arguments: &[&str]) -> Self {
        Self {
            machine: Machine::new(),
            directory: tempfile::Builder::new()
                .prefix("orlop-lab-")
                .tempdir()
                .expect("a temporary directory"),
            arguments: arguments.iter().map(ToString::to_string).collect(),
        }
    }

    /// A cluster that is up, with the test images on every node.
    pub fn start(arguments: &[&str]) -> Self {
        let cluster = Self::prepare(arguments);
        cluster.up();
        cluster.import(&image::busybox());
        cluster.import(&image::nginx());
        cluster
    }

    /// `orlop up --detach`.
    pub fn up(&self) -> String {
        run(self.orlop("up").arg("--detach").args(&self.arguments))
    }

    /// `orlop SUBCOMMAND --data-dir DATA` in the machine.
    pub fn orlop(&self, subcommand: &str) -> Command {
        let mut command = self.machine.command(orlop_binary().to_str().expect("a UTF-8 path"));
        command.arg(subcommand).arg("--data-dir").arg(self.data());
        command
    }

    /// Loads an image archive into every node.
    pub fn import(&self, archive: &Path) {
        run(self.orlop("image").arg("import").arg(archive));
    }

    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// A kubectl command for this cluster.
    pub fn kubectl_command(&self) -> Command {
        let mut command = self.machine.command("kubectl");
        command.env("KUBECONFIG", self.data().join("admin.kubeconfig")).env("HOME", self.directory.path());
        command
    }

    /// Runs kubectl; it must succeed.
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        run(self.kubectl_command().args(arguments))
    }

    /// Runs kubectl with `input`, however it ends.
    pub fn try_kubectl(&self, arguments: &[&str], input: &str) -> Output {
        try_run(self.kubectl_command().args(arguments), input)
    }

    /// Creates objects from YAML text.
    ///
    /// # Panics
    /// When the API server refuses them.
    pub fn create(&self, yaml: &str) {
        let output = self.try_kubectl(&["create", "-f", "-"], yaml);
        assert!(output.code == 0, "kubectl create: {}\n{yaml}", output.stderr);
    }

    /// `kubectl get … -o json`.
    pub fn get(&self, arguments: &[&str]) -> Value {
        let text = run(self.kubectl_command().arg("get").args(arguments).args(["-o", "json"]));
        serde_json::from_str(&text).expect("kubectl prints JSON")
    }

    /// Waits until `count` pods with a label are Ready and gives their names.
    pub fn ready_pods(&self, label: &str, count: usize, seconds: u64) -> Vec<String> {
        eventually(&format!("{count} pods with {label} Ready"), seconds, || {
            let list = self.get(&["pods", "-l", label]);
            let pods = list["items"].as_array().cloned().unwrap_or_default();
            let ready: Vec<String> = pods.iter().filter(|pod| is_ready(pod)).map(name).collect();
            if ready.len() == count && pods.len() == count {
                return Ok(ready);
            }
            let states: Vec<String> =
                pods.iter().map(|pod| format!("{}={}", name(pod), pod["status"])).collect();
            Err(states.join("\n"))
        })
    }

    /// An example of the repository.
    pub fn example(&self, name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples").join(name)
    }

    /// `orlop down`.
    pub fn down(&self) {
        run(&mut self.orlop("down"));
    }

    /// Takes the cluster down and checks that nothing is left of it.
    pub fn down_clean(self) {
        self.down();
        let left = Leftovers::of(&self.data());
        assert!(left.is_empty(), "left behind:\n{}", left.join("\n"));
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let kept = std::env::temp_dir().join(format!("orlop-lab-failed-{}", std::process::id()));
            let _ = try_run(Command::new("cp").arg("-r").arg(self.data().join("log")).arg(&kept), "");
            eprintln!("the daemons' logs are kept in {}", kept.display());
        }
        let _ = try_run(&mut self.orlop("down"), "");
    }
}

fn name(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap_or_default().to_owned()
}

/// Whether a pod's Ready condition is true and it is not being deleted.
pub(crate) fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    pod["metadata"]["deletionTimestamp"].is_null()
        && conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}
