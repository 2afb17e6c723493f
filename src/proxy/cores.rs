//! Several cores: a thread for each, with a runtime of its own, that serves the connections it is given.
//!
//! A connection stays with its core, and so do the connections to Ray that the core opens
//! (`upstream.rs`): one thread reads, forwards and answers a request, and wakes no task on another core.
//! The main runtime accepts connections and hands them out in turn; it also runs the control loop and the
//! admin page, whose longer moments delay new connections only.
//!
//! One socket, and not one for each core with `SO_REUSEPORT`: the kernel would spread connections by a
//! hash, unevenly while they are few; a second rayguard on the same port would take half of them in place of
//! an error; and Unix sockets and those that were handed over open know nothing of it.

use std::cell::Cell;
use std::io;
use std::thread::JoinHandle;
use tokio::runtime::{Builder, Handle};
use tokio::sync::watch;

thread_local! {
    static CORE: Cell<usize> = const { Cell::new(0) };
}

/// The core that this thread is: 0 is the main runtime.
pub fn current() -> usize {
    CORE.get()
}

/// Threads that serve connections.
#[derive(Debug)]
pub struct Cores {
    handles: Vec<Handle>,
    threads: Vec<JoinHandle<()>>,
    end: watch::Sender<()>,
}

impl Cores {
    /// Starts so many.
    pub fn start(count: usize) -> io::Result<Cores> {
        let mut cores = Cores { handles: Vec::new(), threads: Vec::new(), end: watch::Sender::new(()) };
        for core in 1..=count {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            cores.handles.push(runtime.handle().clone());
            let mut end = cores.end.subscribe();
            let serve = move || {
                CORE.set(core);
                let _ = runtime.block_on(end.changed());
            };
            cores.threads.push(std::thread::Builder::new().name(format!("core-{core}")).spawn(serve)?);
        }
        Ok(cores)
    }

    /// Where tasks for each are started.
    pub fn handles(&self) -> Vec<Handle> {
        self.handles.clone()
    }
}

/// Ends what they still do.
impl Drop for Cores {
    fn drop(&mut self) {
        let _ = self.end.send(());
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
