//! Three nodes, each on a disk of its own, that lose power together.

use std::collections::BTreeMap;
use std::fs;
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use quorate_types::NodeId;
use rand::Rng;
use rand::rngs::StdRng;
use tempfile::TempDir;

use super::{Lost, PowerDisk};
use crate::harness::Cluster;

/// What each node's disk has lost.
pub type Dropped = BTreeMap<NodeId, Lost>;

/// A cluster of three whose nodes can lose power; see [`super`].
pub struct PowerCluster {
    // Before the disks: a disk that is used cannot be unmounted.
    cluster: Option<Cluster>,
    disks: BTreeMap<NodeId, PowerDisk>,
    directory: PathBuf,
    machine: Machine,
}

/// What makes a node believe in which boot of its machine it runs: it starts in a mount namespace of
/// its own, where the kernel's file with the boot's number is covered by another.
struct Machine {
    directory: TempDir,
}

impl Machine {
    fn new(binary: &Path) -> Self {
        let directory = TempDir::new().expect("a temporary directory can be made");
        let machine = Self { directory };
        let quoted = |path: &Path| format!("'{}'", path.display());
        let script = format!(
            "#!/bin/sh\nexec unshare --mount sh -c 'mount --bind \"$1\" \
             /proc/sys/kernel/random/boot_id && shift && exec \"$@\"' sh {} {} \"$@\"\n",
            quoted(&machine.boot_id()),
            quoted(binary)
        );
        fs::write(machine.node(), script).expect("a script can be written");
        fs::set_permissions(machine.node(), fs::Permissions::from_mode(0o755))
            .expect("a script can be made executable");
        machine
    }

    /// What to start instead of the node's binary.
    fn node(&self) -> PathBuf {
        self.directory.path().join("node")
    }

    fn boot_id(&self) -> PathBuf {
        self.directory.path().join("boot_id")
    }

    fn boot(&self, random: &mut StdRng) {
        let digits: String = format!("{:032x}", random.random::<u128>());
        let id = [
            &digits[..8],
            &digits[8..12],
            &digits[12..16],
            &digits[16..20],
            &digits[20..],
        ];
        fs::write(self.boot_id(), id.join("-") + "\n").expect("a boot id can be written");
    }
}

impl PowerCluster {
    /// Starts three nodes of `binary`, each on an empty disk of its own.
    pub async fn start(binary: &Path, random: &mut StdRng) -> Self {
        let machine = Machine::new(binary);
        machine.boot(random);
        let mut disks = BTreeMap::new();
        let cluster = Cluster::start_in(&machine.node(), |directory| {
            for node in (1..=3).map(NodeId::new) {
                let at = directory.join(format!("node-{node}"));
                fs::create_dir(&at).expect("a directory can be made");
                let disk = PowerDisk::mount(&at).expect("a mount takes root and /dev/fuse");
                disks.insert(node, disk);
            }
        })
        .await;
        Self {
            directory: cluster.processes.directory().to_owned(),
            cluster: Some(cluster),
            disks,
            machine,
        }
    }

    /// From now on a sync of any disk takes so long: there is more that waits for one.
    pub fn set_sync_time(&self, sync: Duration) {
        for disk in self.disks.values() {
            disk.set_sync_time(sync);
        }
    }

    /// From now on, until power comes back, no disk keeps what it says that it has synced.
    pub fn lie(&self) {
        self.disks.values().for_each(PowerDisk::lie);
    }

    /// The power of all three goes within microseconds. Of what was not synced nothing is left, or
    /// `some`.
    pub fn lose_power(&mut self, some: bool, random: &mut StdRng) -> Dropped {
        for disk in self.disks.values() {
            disk.fail_power();
        }
        for node in self.processes.node_ids() {
            let pid = self.processes.pid(node).expect("the node exists");
            let pid = pid.and_then(|pid| i32::try_from(pid).ok());
            // A child that has not been waited for: the number is still its own.
            kill(Pid::from_raw(pid.expect("the node runs")), Signal::SIGKILL)
                .expect("a child can be killed");
        }
        for disk in self.disks.values() {
            disk.power_off();
        }
        for node in self.processes.node_ids() {
            self.processes.kill(node).expect("a child can be killed");
        }
        let disks = self.disks.iter_mut();
        disks
            .map(|(node, disk)| {
                let lost = disk.lose_power(some, random);
                (*node, lost.expect("nothing uses the disk"))
            })
            .collect()
    }

    /// Every machine boots, and its node starts with what is left on its disk.
    pub fn power_on(&mut self, random: &mut StdRng) {
        self.machine.boot(random);
        for disk in self.disks.values_mut() {
            disk.power_on().expect("the disk can be mounted again");
        }
        for node in self.processes.node_ids() {
            self.processes.start_node(node).expect("the node starts");
        }
    }
}

impl Deref for PowerCluster {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        self.cluster
            .as_ref()
            .expect("taken only when it is dropped")
    }
}

impl DerefMut for PowerCluster {
    fn deref_mut(&mut self) -> &mut Cluster {
        self.cluster
            .as_mut()
            .expect("taken only when it is dropped")
    }
}

impl Drop for PowerCluster {
    fn drop(&mut self) {
        for disk in self.disks.values() {
            disk.power_off();
        }
        self.cluster = None;
        self.disks.clear();
        // What the cluster could not remove while disks were mounted in it.
        let _gone_already = fs::remove_dir_all(&self.directory);
    }
}
