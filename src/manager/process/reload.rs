//! Reloads the configuration while the manager runs: after SIGHUP, after a change of the file, or for a new token in a
//! secret store. Agents stay connected, and jobs stay with their pools.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Event, Manager, Pool, STACK, load_tls_config, read_settings};
use crate::config;
use crate::instance::aws::secrets;
use crate::manager::broker::REMOVED;
use crate::manager::engine;
use crate::manager::pool::PoolSettings;
use crate::manager::scaling::scaler::Scaler;
use crate::manager::settings::Settings;
use crate::sync;

/// See [`secrets::REFETCH_INTERVAL`]; shorter for tests.
const REFETCH_INTERVAL: Duration =
    if cfg!(debug_assertions) { Duration::from_secs(1) } else { secrets::REFETCH_INTERVAL };
/// The time after which a removed pool without jobs and agents is forgotten, even if its group still has instances: the
/// minimum size of the group may not be 0.
const EMPTY_GROUP_TIMEOUT: Duration = Duration::from_secs(3600);

impl Manager {
    /// Reads the configuration again; an invalid configuration changes nothing.
    pub(super) fn reload(&mut self) {
        let path = self.options.config.clone();
        match read_settings(&path).and_then(|settings| self.apply(settings)) {
            Ok(()) => log::info!("configuration loaded path={}", path.display()),
            Err(why) => log::error!("cannot apply the configuration; the old one stays in use error={why}"),
        }
    }

    fn apply(&mut self, settings: Settings) -> Result<(), String> {
        let Settings { manager, config, pools, refused, named } = settings;
        let tls = load_tls_config(&manager)?;
        self.listen_on(&manager.listen)?;
        let state_dir = config::manager_state_dir(&config, &manager);
        if state_dir != self.state_dir {
            log::warn!(
                "state_dir of the manager has changed; the change takes effect at the next start, and jobs that are held \
                 then fail at GitLab state_dir={} in_use={}",
                state_dir.display(),
                self.state_dir.display()
            );
        }
        for problem in &refused {
            log::error!("problem in the configuration path={} problem={problem}", config.path.display());
        }
        self.server.set_tls(tls);
        self.api.set_fleet_token(&manager.agent_token);
        self.shared.job_limit.set_limit(config.concurrent);
        self.config = config;
        // A pool with invalid new settings keeps its current settings.
        self.retire(&pools, |name| !named.iter().any(|named| named == name));
        for pool in pools {
            let name = pool.name.clone();
            if let Err(why) = self.apply_pool(pool) {
                log::error!(
                    "cannot apply the configuration of the pool; the old one stays in use pool={name} error={why}"
                );
            }
        }
        self.publish_pools();
        if let Err(why) = self.serve_status() {
            log::error!("cannot listen on the new listen_address; the other settings are applied error={why}");
        }
        Ok(())
    }

    /// Listens for agents on another address. Open connections stay open. Errors: the address cannot be used.
    fn listen_on(&mut self, address: &str) -> Result<(), String> {
        let current = self.config.mayfly.manager.as_ref().map(|manager| manager.listen.as_str());
        if current == Some(address) {
            return Ok(());
        }
        let unusable = |why: std::io::Error| format!("`listen = \"{address}\"` below [mayfly.manager]: {why}");
        self.server.listen_at(address).map_err(unusable)?;
        log::info!("listening for agents on another address listen={address}");
        Ok(())
    }

    fn apply_pool(&mut self, settings: PoolSettings) -> Result<(), String> {
        self.take_back(&settings.name);
        let mut pools = self.pools();
        let Some(pool) = pools.iter_mut().find(|pool| pool.settings.name == settings.name) else {
            drop(pools);
            return self.try_start_pool(settings);
        };
        let gitlab = self.gitlab(&settings)?;
        let has_new_engine = pool.settings.engine != settings.engine;
        pool.settings = Arc::new(settings);
        pool.broker.reconfigure(Arc::clone(&pool.settings), gitlab);
        if has_new_engine {
            pool.scaler.stop();
            pool.engine = engine::for_pool(&pool.settings.engine, &pool.settings.name);
            let (workload, board) = (pool.broker.workload(), Arc::clone(&self.board));
            pool.scaler = Arc::new(Scaler::start((*pool.settings).clone(), workload, Arc::clone(&pool.engine), board)?);
        } else {
            pool.scaler.reload((*pool.settings).clone());
        }
        Ok(())
    }

    /// Ends pools that are no longer configured: they take no more jobs, their held jobs fail at GitLab, running jobs
    /// end, agents leave, and the group shrinks to its minimum. If another pool has the group now, that pool gets the
    /// instances with their running jobs. `pools` are those of the new configuration.
    fn retire(&mut self, pools: &[PoolSettings], is_gone: impl Fn(&str) -> bool) {
        let all = std::mem::take(&mut *self.pools());
        let (gone, kept): (Vec<Pool>, Vec<Pool>) = all.into_iter().partition(|pool| is_gone(&pool.settings.name));
        *self.pools() = kept;
        for pool in gone {
            let name = pool.settings.name.clone();
            let group = pool.settings.engine.group();
            match pools.iter().find(|other| other.engine.group() == group) {
                Some(other) => {
                    log::warn!(
                        "the group has another pool now; its agents register there pool={name} other={}",
                        other.name
                    );
                    pool.scaler.stop();
                    self.board.remove(&name);
                    pool.broker.release();
                }
                None => {
                    log::warn!("the pool is no longer configured; its agents shut down after their jobs pool={name}");
                    pool.broker.retire("the pool was removed");
                    pool.scaler.reload(PoolSettings { max_instances: Some(0), ..(*pool.settings).clone() });
                }
            }
            pool.broker.fail_held(REMOVED);
            self.await_end(&pool);
            self.retired.push(pool);
        }
    }

    /// Waits in a thread until a removed pool is empty. Then sends [`Event::PoolEmptied`], unless the pool is
    /// configured again.
    fn await_end(&self, pool: &Pool) {
        let (broker, events) = (Arc::clone(&pool.broker), self.events.clone());
        let wait = move || {
            if broker.wait_until_empty(Instant::now() + EMPTY_GROUP_TIMEOUT) {
                let _ = events.send(Event::PoolEmptied(broker.name.clone()));
            }
        };
        if let Err(error) = sync::spawn("retire", STACK, wait) {
            log::error!(
                "cannot start the thread that waits for a pool's end pool={} error={error}",
                pool.settings.name
            );
        }
    }

    /// Ends the threads of an empty pool.
    pub(super) fn forget_pool(&mut self, name: &str) {
        let Some(index) = self.retired.iter().position(|pool| pool.settings.name == name) else { return };
        let pool = self.retired.remove(index);
        pool.scaler.stop();
        pool.broker.stop();
        self.board.remove(name);
        self.publish_pools();
        log::info!("the pool has ended pool={name}");
    }

    /// A pool that is configured again before it has ended continues with its jobs and agents.
    fn take_back(&mut self, name: &str) {
        let Some(index) = self.retired.iter().position(|pool| pool.settings.name == name) else { return };
        let mut pool = self.retired.remove(index);
        pool.broker.take_back();
        let (workload, board) = (pool.broker.workload(), Arc::clone(&self.board));
        pool.scaler.stop();
        match Scaler::start((*pool.settings).clone(), workload, Arc::clone(&pool.engine), board) {
            Ok(scaler) => pool.scaler = Arc::new(scaler),
            Err(why) => log::error!("cannot scale the pool pool={name} error={why}"),
        }
        log::info!("the pool is configured again pool={name}");
        self.pools().push(pool);
    }

    /// Reads the configuration and the tokens in secret stores again, in a thread, after GitLab has rejected a token.
    pub(super) fn fetch_tokens(&mut self) {
        let has_stored_token = self.config.runners.iter().any(|runner| runner.token_reference.is_some());
        let is_recent = self.tokens_fetched.is_some_and(|fetched| fetched.elapsed() < REFETCH_INTERVAL);
        if !has_stored_token || is_recent {
            return;
        }
        self.tokens_fetched = Some(Instant::now());
        let (path, events) = (self.options.config.clone(), self.events.clone());
        let fetch = move || drop(events.send(Event::TokensFetched(Box::new(read_settings(&path)))));
        if let Err(error) = sync::spawn("tokens", STACK, fetch) {
            log::error!("cannot start the thread that fetches tokens error={error}");
        }
    }

    /// Applies new tokens, together with the rest of the configuration.
    pub(super) fn apply_fetched_tokens(&mut self, read: Result<Settings, String>) {
        let tokens = |config: &crate::config::Config| -> Vec<crate::token::Token> {
            config.runners.iter().map(|runner| runner.token.clone()).collect()
        };
        let outcome = match read {
            Ok(settings) if tokens(&settings.config) == tokens(&self.config) => return,
            Ok(settings) => self.apply(settings),
            Err(why) => Err(why),
        };
        match outcome {
            Ok(()) => log::info!("stored tokens have changed; the pools use the new ones"),
            Err(why) => log::error!("cannot fetch the stored tokens again error={why}"),
        }
    }
}
