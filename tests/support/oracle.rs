//! What a server must be like after a spec was applied: a second opinion, from the declarations alone.
//!
//! It knows no steps, no SQL and no order of work. From what a server has and what a spec says it makes what the
//! server has afterwards, or the reason why the spec is impossible. Whatever neither names stays as it is.

use std::collections::{BTreeMap, BTreeSet};

use compute_ctl::spec::document::{ComputeSpec, DeltaOp, GenericOption, Role};

use super::pg::ADMIN;
use super::specs::{ADMINS_TEMPLATE, PRIVILEGED};
use super::view::{Acl, DatabaseView, Inside, RoleView, View};

const FLAGS: [&str; 6] = ["SUPERUSER", "INHERIT", "CREATEROLE", "CREATEDB", "BYPASSRLS", "REPLICATION"];

/// The server after `spec`, or why that cannot be. `fresh` is what is inside of a new database, and
/// `dependencies` are what [`Observer::dependencies`](super::view::Observer::dependencies) says before.
pub(crate) fn expect(
    before: &View,
    dependencies: &BTreeSet<(String, Option<String>)>,
    fresh: &Inside,
    spec: &ComputeSpec,
) -> Result<View, String> {
    let deltas = spec.delta_operations.as_deref().unwrap_or_default();
    let mut oracle = Oracle {
        world: before.clone(),
        spec,
        deltas,
        role_was: before.roles.keys().map(|name| (name.clone(), name.clone())).collect(),
        database_was: before.databases.keys().map(|name| (name.clone(), name.clone())).collect(),
    };
    oracle.check_schema()?;
    oracle.world.databases.retain(|_, database| database.limit != -2);
    oracle.strengthen();
    oracle.rename_roles()?;
    let doomed = oracle.doomed();
    oracle.roles(&doomed)?;
    oracle.move_databases()?;
    oracle.databases(&doomed, fresh)?;
    oracle.farewell(&doomed, dependencies)?;
    oracle.subscriptions();
    oracle.prepare();
    Ok(oracle.world)
}

struct Oracle<'a> {
    world: View,
    spec: &'a ComputeSpec,
    deltas: &'a [DeltaOp],
    /// Names as they were, by the names they get.
    role_was: BTreeMap<String, String>,
    database_was: BTreeMap<String, String>,
}

/// Whether the thing which operation `at` names is there no more, and what has its name now came by a later
/// rename which is done: that one's source is not there, or is there by such a rename itself.
fn has_happened(deltas: &[DeltaOp], rename: &str, at: usize, exists: &dyn Fn(&str) -> bool) -> bool {
    let name = &deltas[at].name;
    (at + 1..deltas.len()).any(|later| {
        let op = &deltas[later];
        op.action == rename
            && op.name != *name
            && op.new_name.as_ref() == Some(name)
            && (!exists(&op.name) || has_happened(deltas, rename, later, exists))
    })
}

/// Whether following names from source to final place ever comes back.
fn goes_round(deltas: &[DeltaOp], rename: &str) -> bool {
    // Everything starts at its own name; who stands where in the end.
    let mut at: BTreeMap<String, String> = BTreeMap::new();
    for op in deltas.iter().filter(|op| op.action == rename) {
        let Some(to) = op.new_name.clone().filter(|to| *to != op.name) else { continue };
        let first = at.remove(&op.name).unwrap_or_else(|| op.name.clone());
        at.insert(to, first);
    }
    at.keys().any(|start| {
        let mut seen = BTreeSet::new();
        let mut name = start;
        while let Some(previous) = at.get(name) {
            if !seen.insert(previous) {
                return true;
            }
            name = previous;
        }
        false
    })
}

fn is_reserved(name: &str) -> bool {
    name.starts_with("pg_") || name == "public" || name == "none"
}

fn swap(name: &mut String, from: &str, to: &str) {
    if name == from {
        to.clone_into(name);
    }
}

/// The same with another name in place of one, and what then says the same twice, once.
fn renamed(acl: &Acl, from: &str, to: &str) -> Acl {
    let mut merged: BTreeMap<(String, String, String), bool> = BTreeMap::new();
    for (grantee, grantor, privilege, grantable) in acl {
        let (mut grantee, mut grantor) = (grantee.clone(), grantor.clone());
        swap(&mut grantee, from, to);
        swap(&mut grantor, from, to);
        *merged.entry((grantee, grantor, privilege.clone())).or_default() |= grantable;
    }
    merged.into_iter().map(|((a, b, c), d)| (a, b, c, d)).collect()
}

/// The same without a role: what it holds, what it passed on, and what was passed on from there.
fn without(acl: &Acl, owner: &str, role: &str) -> Acl {
    let mut left: Acl = acl.iter().filter(|(to, by, _, _)| to != role && by != role).cloned().collect();
    loop {
        let kept: Acl = left
            .iter()
            .filter(|(_, by, what, _)| {
                by == owner
                    || left.iter().any(|(to, _, held, grantable)| to == by && held == what && *grantable)
            })
            .cloned()
            .collect();
        if kept == left {
            return left;
        }
        left = kept;
    }
}

impl Oracle<'_> {
    fn wanted(&self, name: &str) -> Option<&Role> {
        self.spec.cluster.roles.iter().find(|role| role.name == name)
    }

    fn lists(&self, name: &str) -> bool {
        self.spec.cluster.databases.iter().any(|database| database.name == name)
    }

    /// The privileged role has what makes it one.
    fn strengthen(&mut self) {
        let role = self.world.roles.entry(PRIVILEGED.to_owned()).or_default();
        for flag in 2..6 {
            role.flags[flag] = true;
        }
        for group in ["pg_read_all_data", "pg_write_all_data"] {
            self.world.members.entry((group.to_owned(), PRIVILEGED.to_owned())).or_insert(false);
        }
    }

    fn rename_roles(&mut self) -> Result<(), String> {
        self.check_names("rename_role")?;
        for (at, op) in self.deltas.iter().enumerate().filter(|(_, op)| op.action == "rename_role") {
            let exists = |name: &str| self.world.roles.contains_key(name);
            let to = op.new_name.as_ref().expect("checked above");
            if *to == op.name || !exists(&op.name) || has_happened(self.deltas, "rename_role", at, &exists) {
                continue;
            }
            if exists(to) {
                if self.wanted(to).is_some() && self.wanted(&op.name).is_some() {
                    continue;
                }
                return Err(format!("role {to:?} exists"));
            }
            if [ADMIN, PRIVILEGED].contains(&op.name.as_str()) || is_reserved(&op.name) || is_reserved(to) {
                return Err(format!("role {:?} is not to be renamed to {to:?}", op.name));
            }
            self.rename_role(&op.name, to);
        }
        Ok(())
    }

    fn check_names(&self, rename: &str) -> Result<(), String> {
        if self.deltas.iter().any(|op| op.action == rename && op.new_name.is_none()) {
            return Err("no new name".to_owned());
        }
        if goes_round(self.deltas, rename) {
            return Err("names go round".to_owned());
        }
        Ok(())
    }

    fn rename_role(&mut self, from: &str, to: &str) {
        let mut role = self.world.roles.remove(from).expect("checked by the caller");
        // Salted with the name.
        role.verifier = role.verifier.filter(|verifier| !verifier.starts_with("md5"));
        self.world.roles.insert(to.to_owned(), role);
        let was = self.role_was.remove(from).expect("every role was something");
        self.role_was.insert(to.to_owned(), was);
        let members = std::mem::take(&mut self.world.members);
        for ((mut group, mut member), admin) in members {
            swap(&mut group, from, to);
            swap(&mut member, from, to);
            self.world.members.insert((group, member), admin);
        }
        if let Some(owner) = &mut self.world.neon {
            swap(owner, from, to);
        }
        for database in self.world.databases.values_mut() {
            swap(&mut database.owner, from, to);
            database.acl = renamed(&database.acl, from, to);
            let Some(inside) = &mut database.inside else { continue };
            for (owner, acl) in inside.objects.values_mut() {
                swap(owner, from, to);
                *acl = renamed(acl, from, to);
            }
            let defaults = std::mem::take(&mut inside.defaults);
            for (mut whose, schema, kind, mut receiver, what, grantable) in defaults {
                swap(&mut whose, from, to);
                swap(&mut receiver, from, to);
                inside.defaults.insert((whose, schema, kind, receiver, what, grantable));
            }
        }
    }

    /// Names of roles that are to go, unless a later rename gives the name to another.
    fn doomed(&self) -> BTreeSet<String> {
        let never = |_: &str| false;
        let ops = self.deltas.iter().enumerate().filter(|(_, op)| op.action == "delete_role");
        ops.filter(|(at, _)| !has_happened(self.deltas, "rename_role", *at, &never))
            .map(|(_, op)| op.name.clone())
            .collect()
    }

    fn roles(&mut self, doomed: &BTreeSet<String>) -> Result<(), String> {
        let jwt: BTreeSet<&String> = self
            .spec
            .local_proxy_config
            .iter()
            .flat_map(|proxy| proxy.jwks.iter().flatten())
            .flat_map(|set| &set.role_names)
            .collect();
        let known = |world: &View, name: &str| world.roles.contains_key(name) || name.starts_with("pg_");
        for wanted in &self.spec.cluster.roles {
            if doomed.contains(&wanted.name) {
                continue;
            }
            let is_new = !self.world.roles.contains_key(&wanted.name);
            if is_new && is_reserved(&wanted.name) {
                return Err(format!("role name {:?} is reserved", wanted.name));
            }
            let mut role = self.world.roles.remove(&wanted.name).unwrap_or_else(|| {
                let usual = !jwt.contains(&wanted.name);
                RoleView {
                    flags: [false, true, usual, usual, usual, usual],
                    login: true,
                    limit: -1,
                    ..RoleView::default()
                }
            });
            if is_new && !jwt.contains(&wanted.name) {
                self.world.members.insert((PRIVILEGED.to_owned(), wanted.name.clone()), false);
            }
            let verifier = wanted.encrypted_password.as_ref().map(|password| {
                let text = password.reveal();
                if text.starts_with("SCRAM") {
                    text.to_owned()
                } else {
                    format!("md5{}", text.trim_start_matches("md5").to_lowercase())
                }
            });
            role.login |= is_new || role.verifier != verifier;
            role.verifier = verifier;
            for option in wanted.options.iter().flatten() {
                self.declare(&mut role, &wanted.name, option);
            }
            self.world.roles.insert(wanted.name.clone(), role);
        }
        for wanted in self.spec.cluster.roles.iter().filter(|role| !doomed.contains(&role.name)) {
            for group in groups(wanted) {
                if !known(&self.world, &group) || doomed.contains(&group) {
                    return Err(format!("no such group {group:?}"));
                }
            }
        }
        self.check_circles()
    }

    fn declare(&mut self, role: &mut RoleView, name: &str, option: &GenericOption) {
        let word = option.name.to_uppercase();
        let value = option.value.as_deref().unwrap_or_default();
        match word.as_str() {
            "CONNECTION LIMIT" => role.limit = value.parse().expect("a generated number"),
            "VALID UNTIL" => role.until = Some(value.replace('I', "i")),
            "IN ROLE" => {
                let group = value.trim_matches('"').to_owned();
                self.world.members.entry((group, name.to_owned())).or_insert(false);
            }
            _ => {
                let on = FLAGS.contains(&word.as_str());
                let flag = word.strip_prefix("NO").filter(|_| !on).unwrap_or(&word);
                let at = FLAGS.iter().position(|known| *known == flag).expect("a generated flag");
                role.flags[at] = on;
            }
        }
    }

    /// Nobody is a member of itself, directly or not.
    fn check_circles(&self) -> Result<(), String> {
        for start in self.world.roles.keys() {
            let mut reached = BTreeSet::from([start]);
            loop {
                let more: BTreeSet<&String> = self
                    .world
                    .members
                    .keys()
                    .filter(|(_, member)| reached.contains(member))
                    .map(|(group, _)| group)
                    .filter(|group| !reached.contains(group) || *group == start)
                    .collect();
                if more.contains(start) {
                    return Err(format!("role {start:?} is a member of itself"));
                }
                if more.is_empty() {
                    break;
                }
                reached.extend(more);
            }
        }
        Ok(())
    }

    /// Deletions and renames of databases, in the order of the list.
    fn move_databases(&mut self) -> Result<(), String> {
        self.check_names("rename_db")?;
        for (at, op) in self.deltas.iter().enumerate() {
            let exists = |name: &str| self.world.databases.contains_key(name);
            let is_rename = op.action == "rename_db";
            if !is_rename && op.action != "delete_db" || !exists(&op.name) {
                continue;
            }
            if has_happened(self.deltas, "rename_db", at, &exists) {
                continue;
            }
            let to = op.new_name.as_ref().filter(|_| is_rename);
            if to == Some(&op.name) {
                continue;
            }
            if let Some(to) = to.filter(|to| exists(to)) {
                if self.lists(to) && self.lists(&op.name) {
                    continue;
                }
                return Err(format!("database {to:?} exists"));
            }
            if op.name == "postgres" {
                return Err("the database postgres is ours".to_owned());
            }
            let database = self.world.databases.remove(&op.name).expect("it exists");
            if let Some(to) = to {
                self.world.databases.insert(to.clone(), database);
                let was = self.database_was.remove(&op.name).expect("every database was something");
                self.database_was.insert(to.clone(), was);
            }
        }
        Ok(())
    }

    fn databases(&mut self, doomed: &BTreeSet<String>, fresh: &Inside) -> Result<(), String> {
        for wanted in &self.spec.cluster.databases {
            if doomed.contains(&wanted.owner) || !self.is_role(&wanted.owner) {
                return Err(format!("no such owner {:?}", wanted.owner));
            }
            let options = wanted.options.as_deref().unwrap_or_default();
            let option = |name: &str| options.iter().find(|option| option.name.eq_ignore_ascii_case(name));
            let database = self.world.databases.entry(wanted.name.clone()).or_insert_with(|| {
                self.database_was.remove(&wanted.name);
                let public = if option("TEMPLATE").is_some_and(|option| {
                    option.value.as_deref().is_some_and(|value| value.contains(ADMINS_TEMPLATE))
                }) {
                    ADMIN
                } else {
                    "pg_database_owner"
                };
                let locale = if option("LC_COLLATE").is_some() { "C C" } else { "C.UTF-8 C.UTF-8" };
                let mut inside = fresh.clone();
                for (owner, acl) in inside.objects.values_mut() {
                    *acl = renamed(acl, owner, public);
                    public.clone_into(owner);
                }
                DatabaseView {
                    owner: wanted.owner.clone(),
                    allow: true,
                    limit: -1,
                    locale: locale.to_owned(),
                    acl: [("", "CONNECT"), ("", "TEMPORARY")]
                        .into_iter()
                        .chain(["CREATE", "CONNECT", "TEMPORARY"].map(|what| (wanted.owner.as_str(), what)))
                        .map(|(to, what)| (to.to_owned(), wanted.owner.clone(), what.to_owned(), false))
                        .collect(),
                    inside: Some(inside),
                    ..DatabaseView::default()
                }
            });
            let owner = std::mem::replace(&mut database.owner, wanted.owner.clone());
            database.acl = renamed(&database.acl, &owner, &wanted.owner);
            let is_true = |option: &GenericOption| {
                ["true", "on", "1"].contains(&option.value.as_deref().unwrap_or_default())
            };
            if let Some(option) = option("CONNECTION LIMIT") {
                database.limit = option.value.as_deref().unwrap_or_default().parse().expect("a number");
            }
            if let Some(option) = option("ALLOW_CONNECTIONS") {
                database.allow = is_true(option);
            }
            if let Some(option) = option("IS_TEMPLATE") {
                database.template = is_true(option);
            }
            let holds = |what: &str| {
                database.acl.iter().any(|(to, _, privilege, _)| to == PRIVILEGED && privilege == what)
            };
            let all = ["CREATE", "CONNECT", "TEMPORARY"];
            if wanted.owner != PRIVILEGED && !all.into_iter().all(holds) {
                for what in all {
                    let grant =
                        |grantable| (PRIVILEGED.to_owned(), wanted.owner.clone(), what.to_owned(), grantable);
                    if !database.acl.contains(&grant(true)) {
                        database.acl.insert(grant(false));
                    }
                }
            }
        }
        Ok(())
    }

    fn is_role(&self, name: &str) -> bool {
        self.world.roles.contains_key(name) || name.starts_with("pg_")
    }

    /// Roles go, and what they had goes to the owners of the databases it is in.
    fn farewell(
        &mut self,
        doomed: &BTreeSet<String>,
        dependencies: &BTreeSet<(String, Option<String>)>,
    ) -> Result<(), String> {
        for role in doomed {
            if !self.world.roles.contains_key(role) {
                continue;
            }
            if role == ADMIN || role == PRIVILEGED {
                return Err(format!("role {role:?} is ours"));
            }
            let was = &self.role_was.get(role).cloned().unwrap_or_default();
            for (name, database) in &mut self.world.databases {
                if database.owner == *role {
                    database.acl = renamed(&database.acl, role, ADMIN);
                    ADMIN.clone_into(&mut database.owner);
                }
                database.acl = without(&database.acl, &database.owner, role);
                let here = self.database_was.get(name);
                let has = here.is_some_and(|here| dependencies.contains(&(was.clone(), Some(here.clone()))));
                if has && !database.allow {
                    return Err(format!("{role:?} has something in {name:?}"));
                }
                let heir = database.owner.clone();
                let Some(inside) = &mut database.inside else { continue };
                for (owner, acl) in inside.objects.values_mut() {
                    if owner == role {
                        *acl = renamed(acl, role, &heir);
                        heir.clone_into(owner);
                    }
                    *acl = without(acl, owner, role);
                }
                inside.defaults.retain(|(whose, _, _, receiver, _, _)| whose != role && receiver != role);
            }
            // The database which everything is worked from.
            let heir = self.world.databases["postgres"].owner.clone();
            if let Some(owner) = self.world.neon.as_mut().filter(|owner| *owner == role) {
                *owner = heir;
            }
            self.world.members.retain(|(group, member), _| group != role && member != role);
            self.world.roles.remove(role);
        }
        Ok(())
    }

    fn inherits_subscriptions(&self) -> bool {
        self.spec.drop_subscriptions_before_start && self.world.dropped_on != self.spec.timeline_id
    }

    /// The note of dropped subscriptions goes into a schema of ours.
    fn check_schema(&self) -> Result<(), String> {
        let stranger = |owner: &String| !self.world.roles[owner].flags[0];
        if self.inherits_subscriptions() && self.world.neon.as_ref().is_some_and(stranger) {
            return Err("the schema neon is somebody else's".to_owned());
        }
        Ok(())
    }

    fn subscriptions(&mut self) {
        if !self.inherits_subscriptions() {
            return;
        }
        self.world.neon.get_or_insert_with(|| ADMIN.to_owned());
        for database in self.world.databases.values_mut().filter(|database| database.allow) {
            database.subscriptions.clear();
        }
        self.world.dropped_on.clone_from(&self.spec.timeline_id);
    }

    /// Schema `public` of listed databases, and what the administrator creates there.
    fn prepare(&mut self) {
        let web_access = self.world.roles.contains_key("web_access");
        for wanted in &self.spec.cluster.databases {
            let database = self.world.databases.get_mut(&wanted.name).expect("listed ones exist");
            if !database.allow {
                database.inside = None;
                continue;
            }
            let Some(inside) = database.inside.as_mut().filter(|_| wanted.name != "postgres") else {
                continue;
            };
            let Some((owner, acl)) = inside.objects.get_mut("public") else { continue };
            if owner == ADMIN {
                *acl = renamed(acl, ADMIN, &wanted.owner);
                wanted.owner.clone_into(owner);
            }
            if web_access && owner != "web_access" {
                let grant =
                    |grantable| ("web_access".to_owned(), owner.clone(), "CREATE".to_owned(), grantable);
                if !acl.contains(&grant(true)) {
                    acl.insert(grant(false));
                }
            }
            let tables = ["INSERT", "SELECT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER"];
            let sequences = ["USAGE", "SELECT", "UPDATE"];
            let all = tables.map(|what| ("r", what)).into_iter().chain(sequences.map(|what| ("S", what)));
            for (kind, what) in all {
                inside.defaults.insert((
                    ADMIN.to_owned(),
                    "public".to_owned(),
                    kind.to_owned(),
                    PRIVILEGED.to_owned(),
                    what.to_owned(),
                    true,
                ));
            }
        }
    }
}

/// The roles which an entry declares its role to be a member of.
fn groups(role: &Role) -> Vec<String> {
    let options = role.options.iter().flatten().filter(|option| option.name == "IN ROLE");
    options.filter_map(|option| Some(option.value.as_deref()?.trim_matches('"').to_owned())).collect()
}
