//! Generated pairs of specs, and what other people do to the server between the two.
//!
//! Everything is drawn as plain numbers first and then built into documents by ordinary code, so that a failing
//! pair shrinks to the few entries and edits which matter. The second spec comes from the first by edits.

use compute_ctl::spec::document::ComputeSpec;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::acts::{act, script};
use super::names::names;
use super::pg::ADMIN;

/// The privileged role of these tests.
pub(crate) const PRIVILEGED: &str = "neon_superuser";

/// A database to copy whose schema `public` belongs to the administrator.
pub(crate) const ADMINS_TEMPLATE: &str = "admins template";

/// Two specs, applied one after the other, and what happens in between.
#[derive(Clone)]
pub(crate) struct Case {
    pub(crate) first: Value,
    /// Database and statements, executed by a superuser.
    pub(crate) acts: Vec<(String, String)>,
    /// Databases in which somebody has a session open.
    pub(crate) sessions: Vec<String>,
    /// Whether the first spec is applied once more after that.
    pub(crate) again: bool,
    pub(crate) second: Value,
}

/// As a document, to be kept as a test.
impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = json!({
            "first": self.first, "acts": self.acts, "sessions": self.sessions, "again": self.again,
            "second": self.second,
        });
        write!(f, "{text:#}")
    }
}

pub(crate) fn document(spec: &Value) -> ComputeSpec {
    serde_json::from_value(spec.clone()).expect("a generated spec has the form of one")
}

/// What a role declares.
#[derive(Clone, Debug)]
struct RoleTraits {
    verifier: u8,
    flags: Vec<(u8, bool, bool)>,
    limit: Option<i32>,
    until: Option<u8>,
    groups: Vec<u8>,
    jwt: bool,
}

/// What a database declares.
#[derive(Clone, Debug)]
pub(super) struct DatabaseTraits {
    owner: u8,
    limit: Option<i32>,
    pub(super) allow: Option<bool>,
    template: Option<bool>,
    source: u8,
}

fn role_traits() -> impl Strategy<Value = RoleTraits> {
    let flags = proptest::collection::vec((0..6u8, any::<bool>(), any::<bool>()), 0..3);
    (
        0..8u8,
        flags,
        proptest::option::weighted(0.3, -1..9i32),
        proptest::option::weighted(0.3, 0..3u8),
        proptest::collection::vec(0..20u8, 0..3),
        proptest::bool::weighted(0.2),
    )
        .prop_map(|(verifier, flags, limit, until, groups, jwt)| RoleTraits {
            verifier,
            flags,
            limit,
            until,
            groups,
            jwt,
        })
}

fn database_traits() -> impl Strategy<Value = DatabaseTraits> {
    (
        0..8u8,
        proptest::option::weighted(0.3, -1..9i32),
        proptest::option::weighted(0.2, any::<bool>()),
        proptest::option::weighted(0.2, any::<bool>()),
        0..4u8,
    )
        .prop_map(|(owner, limit, allow, template, source)| DatabaseTraits {
            owner,
            limit,
            allow,
            template,
            source,
        })
}

/// How the second spec differs from the first. Numbers are taken modulo what there is.
#[derive(Clone, Debug)]
enum Edit {
    AddRole(RoleTraits),
    AddDatabase(DatabaseTraits),
    ForgetRole(u8),
    ForgetDatabase(u8),
    ChangeRole(u8, RoleTraits),
    ChangeDatabase(u8, DatabaseTraits),
    GiveDatabaseToNewRole(u8, RoleTraits),
    GiveDatabase(u8, u8),
    RenameRole(u8),
    RenameDatabase(u8),
    /// The second moves to the first's name, which is deleted or renamed away before.
    RenameOnto(u8, u8, bool),
    /// Three databases push each other on.
    Chain(u8),
    DeleteRole(u8, bool),
    DeleteDatabase(u8),
    DeleteAbsent,
    RenameAbsent,
    Repeat(u8),
    DropSubscriptions,
    Spoil(u8, u8),
}

fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        2 => role_traits().prop_map(Edit::AddRole),
        1 => database_traits().prop_map(Edit::AddDatabase),
        1 => any::<u8>().prop_map(Edit::ForgetRole),
        1 => any::<u8>().prop_map(Edit::ForgetDatabase),
        3 => (any::<u8>(), role_traits()).prop_map(|(at, traits)| Edit::ChangeRole(at, traits)),
        2 => (any::<u8>(), database_traits()).prop_map(|(at, traits)| Edit::ChangeDatabase(at, traits)),
        2 => (any::<u8>(), role_traits()).prop_map(|(at, traits)| Edit::GiveDatabaseToNewRole(at, traits)),
        2 => (any::<u8>(), any::<u8>()).prop_map(|(at, owner)| Edit::GiveDatabase(at, owner)),
        2 => any::<u8>().prop_map(Edit::RenameRole),
        2 => any::<u8>().prop_map(Edit::RenameDatabase),
        1 => (any::<u8>(), any::<u8>(), any::<bool>()).prop_map(|(a, b, kept)| Edit::RenameOnto(a, b, kept)),
        1 => any::<u8>().prop_map(Edit::Chain),
        3 => (any::<u8>(), proptest::bool::weighted(0.9)).prop_map(|(at, mend)| Edit::DeleteRole(at, mend)),
        2 => any::<u8>().prop_map(Edit::DeleteDatabase),
        1 => Just(Edit::DeleteAbsent),
        1 => Just(Edit::RenameAbsent),
        1 => any::<u8>().prop_map(Edit::Repeat),
        1 => Just(Edit::DropSubscriptions),
        3 => (0..9u8, any::<u8>()).prop_map(|(what, at)| Edit::Spoil(what, at)),
    ]
}

/// Pairs of specs with at most so many acts in between.
pub(crate) fn cases(most_acts: usize) -> impl Strategy<Value = Case> {
    (
        (names(), names()),
        proptest::collection::vec(role_traits(), 0..5),
        proptest::collection::vec(database_traits(), 0..4),
        proptest::collection::vec(edit(), 0..7),
        proptest::collection::vec(act(), 0..=most_acts),
        any::<bool>(),
    )
        .prop_map(|((role_names, database_names), roles, databases, edits, acts, again)| {
            let mut draft = Draft::new(role_names, database_names);
            for traits in roles {
                draft.add_role(traits);
            }
            for traits in databases {
                draft.add_database(traits);
            }
            let first = draft.clone();
            for edit in edits {
                draft.edit(edit);
            }
            let (acts, mut sessions) = script(&first, &acts);
            // PostgreSQL renames no database in which somebody is.
            let is_renamed = |name: &String| {
                draft.deltas.iter().any(|op| op["action"] == "rename_db" && op["name"] == name.as_str())
            };
            sessions.retain(|name| !is_renamed(name));
            Case { first: first.spec(), acts, sessions, again, second: draft.spec() }
        })
}

#[derive(Clone, Debug)]
pub(super) struct DraftRole {
    /// Where it stands in the order of groups and members, so that no circle comes about by chance.
    pub(super) rank: usize,
    pub(super) name: String,
    traits: RoleTraits,
    groups: Vec<String>,
}

#[derive(Clone, Debug)]
pub(super) struct DraftDatabase {
    pub(super) name: String,
    pub(super) owner: String,
    pub(super) traits: DatabaseTraits,
}

/// A spec in the making.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    free_roles: Vec<String>,
    free_databases: Vec<String>,
    pub(super) roles: Vec<DraftRole>,
    pub(super) databases: Vec<DraftDatabase>,
    deltas: Vec<Value>,
    drop_subscriptions: bool,
    ranks: usize,
}

/// The element a number stands for.
pub(super) fn pick<T>(list: &[T], number: u8) -> Option<usize> {
    (!list.is_empty()).then(|| usize::from(number) % list.len())
}

/// Whether an option can name such a role: the format has no escapes.
fn can_be_group(name: &str) -> bool {
    !name.contains(['"', '\\']) && !name.contains(char::is_control)
}

impl Draft {
    fn new(mut free_roles: Vec<String>, mut free_databases: Vec<String>) -> Self {
        free_roles.reverse();
        free_databases.reverse();
        Self {
            free_roles,
            free_databases,
            roles: Vec::new(),
            databases: Vec::new(),
            deltas: Vec::new(),
            drop_subscriptions: false,
            ranks: 0,
        }
    }

    fn fresh_role(&mut self) -> String {
        self.free_roles.pop().unwrap_or_else(|| format!("more {}", self.deltas.len()))
    }

    fn fresh_database(&mut self) -> String {
        self.free_databases.pop().unwrap_or_else(|| format!("more {}", self.deltas.len()))
    }

    /// Groups of lower rank only.
    fn groups(&self, traits: &RoleTraits, rank: usize) -> Vec<String> {
        let lower: Vec<&DraftRole> =
            self.roles.iter().filter(|role| role.rank < rank && can_be_group(&role.name)).collect();
        let mut groups: Vec<String> = Vec::new();
        for number in &traits.groups {
            let group = match number {
                0 => "pg_monitor".to_owned(),
                1 => PRIVILEGED.to_owned(),
                _ => match pick(&lower, *number) {
                    Some(at) => lower[at].name.clone(),
                    None => continue,
                },
            };
            if !groups.contains(&group) {
                groups.push(group);
            }
        }
        groups
    }

    fn add_role(&mut self, traits: RoleTraits) -> String {
        let name = self.fresh_role();
        let rank = self.ranks;
        self.ranks += 1;
        let groups = self.groups(&traits, rank);
        self.roles.push(DraftRole { rank, name: name.clone(), traits, groups });
        name
    }

    fn owner(&self, number: u8) -> String {
        match number {
            0 => ADMIN.to_owned(),
            1 => PRIVILEGED.to_owned(),
            _ => pick(&self.roles, number).map_or(ADMIN.to_owned(), |at| self.roles[at].name.clone()),
        }
    }

    fn add_database(&mut self, traits: DatabaseTraits) {
        let (name, owner) = (self.fresh_database(), self.owner(traits.owner));
        self.databases.push(DraftDatabase { name, owner, traits });
    }

    fn op(&mut self, action: &str, name: &str, to: Option<&str>) {
        let mut op = json!({ "action": action, "name": name });
        if let Some(to) = to {
            op["new_name"] = json!(to);
        }
        self.deltas.push(op);
    }

    fn rename_role(&mut self, at: usize, to: String) {
        let from = std::mem::replace(&mut self.roles[at].name, to.clone());
        self.op("rename_role", &from, Some(&to));
        for database in self.databases.iter_mut().filter(|database| database.owner == from) {
            database.owner.clone_from(&to);
        }
        for role in &mut self.roles {
            role.groups.retain(|group| *group != from || can_be_group(&to));
            for group in role.groups.iter_mut().filter(|group| **group == from) {
                group.clone_from(&to);
            }
        }
    }

    fn rename_database(&mut self, at: usize, to: String) {
        let from = std::mem::replace(&mut self.databases[at].name, to.clone());
        self.op("rename_db", &from, Some(&to));
    }

    fn edit(&mut self, edit: Edit) {
        match edit {
            Edit::AddRole(traits) => {
                self.add_role(traits);
            }
            Edit::AddDatabase(traits) => self.add_database(traits),
            Edit::ForgetRole(number) => {
                if let Some(at) = pick(&self.roles, number) {
                    self.roles.remove(at);
                }
            }
            Edit::ForgetDatabase(number) => {
                if let Some(at) = pick(&self.databases, number) {
                    self.databases.remove(at);
                }
            }
            Edit::ChangeRole(number, traits) => {
                if let Some(at) = pick(&self.roles, number) {
                    let groups = self.groups(&traits, self.roles[at].rank);
                    self.roles[at].traits = traits;
                    self.roles[at].groups = groups;
                }
            }
            Edit::ChangeDatabase(number, traits) => {
                if let Some(at) = pick(&self.databases, number) {
                    self.databases[at].owner = self.owner(traits.owner);
                    self.databases[at].traits = traits;
                }
            }
            Edit::GiveDatabaseToNewRole(number, traits) => {
                let owner = self.add_role(traits);
                if let Some(at) = pick(&self.databases, number) {
                    self.databases[at].owner = owner;
                }
            }
            Edit::GiveDatabase(number, owner) => {
                if let Some(at) = pick(&self.databases, number) {
                    self.databases[at].owner = self.owner(owner % 8);
                }
            }
            Edit::RenameRole(number) => {
                if let Some(at) = pick(&self.roles, number) {
                    let to = self.fresh_role();
                    self.rename_role(at, to);
                }
            }
            Edit::RenameDatabase(number) => {
                if let Some(at) = pick(&self.databases, number) {
                    let to = self.fresh_database();
                    self.rename_database(at, to);
                }
            }
            Edit::RenameOnto(a, b, kept) => self.rename_onto(a, b, kept),
            Edit::Chain(number) => {
                if self.databases.len() >= 3 {
                    let first = usize::from(number) % (self.databases.len() - 2);
                    let mut to = self.fresh_database();
                    for at in first..first + 3 {
                        let from = self.databases[at].name.clone();
                        self.rename_database(at, to);
                        to = from;
                    }
                }
            }
            Edit::DeleteRole(number, mend) => {
                if let Some(at) = pick(&self.roles, number) {
                    let gone = self.roles.remove(at).name;
                    self.op("delete_role", &gone, None);
                    if mend {
                        let heir = self.owner(number);
                        for database in self.databases.iter_mut().filter(|database| database.owner == gone) {
                            database.owner.clone_from(&heir);
                        }
                        for role in &mut self.roles {
                            role.groups.retain(|group| *group != gone);
                        }
                    }
                }
            }
            Edit::DeleteDatabase(number) => {
                if let Some(at) = pick(&self.databases, number) {
                    let gone = self.databases.remove(at).name;
                    self.op("delete_db", &gone, None);
                }
            }
            Edit::DeleteAbsent => {
                let (role, database) = (self.fresh_role(), self.fresh_database());
                self.op("delete_role", &role, None);
                self.op("delete_db", &database, None);
            }
            Edit::RenameAbsent => {
                let (role, database) = (self.fresh_role(), self.fresh_database());
                let (new_role, new_database) = (self.fresh_role(), self.fresh_database());
                self.op("rename_role", &role, Some(&new_role));
                self.op("rename_db", &database, Some(&new_database));
            }
            Edit::Repeat(number) => {
                if let Some(at) = pick(&self.deltas, number) {
                    let again = self.deltas[at].clone();
                    // To delete what is listed is refused, and a case that is refused tells little.
                    let listed =
                        self.databases.iter().any(|database| again["name"] == database.name.as_str());
                    if again["action"] != "delete_db" || !listed {
                        self.deltas.push(again);
                    }
                }
            }
            Edit::DropSubscriptions => self.drop_subscriptions = true,
            Edit::Spoil(what, number) => self.spoil(what, number),
        }
    }

    fn rename_onto(&mut self, a: u8, b: u8, kept: bool) {
        let (Some(at), Some(other)) = (pick(&self.databases, a), pick(&self.databases, b)) else { return };
        if at == other {
            return;
        }
        let name = self.databases[at].name.clone();
        if kept {
            let to = self.fresh_database();
            self.rename_database(at, to);
            self.rename_database(other, name);
        } else {
            self.op("delete_db", &name, None);
            self.rename_database(other, name);
            self.databases.remove(at);
        }
    }

    /// Makes something of it impossible.
    fn spoil(&mut self, what: u8, number: u8) {
        let role = pick(&self.roles, number);
        let database = pick(&self.databases, number);
        match what {
            0 => {
                if let Some(at) = database {
                    self.databases[at].owner = "nobody has this name".to_owned();
                }
            }
            1 => self.op("delete_role", PRIVILEGED, None),
            2 => self.op("delete_db", "postgres", None),
            3 => self.op("rename_role", ADMIN, Some("another")),
            4 => {
                if let Some(at) = role {
                    let name = self.roles[at].name.clone();
                    let between = self.fresh_role();
                    self.op("rename_role", &name, Some(&between));
                    self.op("rename_role", &between, Some(&name));
                }
            }
            5 => {
                if let Some(at) = role {
                    self.rename_role(at, "pg_of ours".to_owned());
                }
            }
            6 => {
                if let Some(at) = role {
                    self.roles[at].groups.push("nobody has this name".to_owned());
                }
            }
            7 => {
                // Each a member of the other, or one of itself.
                let other = pick(&self.roles, number.wrapping_add(1));
                if let (Some(at), Some(other)) = (role, other) {
                    let (one, two) = (self.roles[at].name.clone(), self.roles[other].name.clone());
                    if can_be_group(&one) && can_be_group(&two) {
                        for (at, group) in [(at, two), (other, one)] {
                            if !self.roles[at].groups.contains(&group) {
                                self.roles[at].groups.push(group);
                            }
                        }
                    }
                }
            }
            _ => self.op("rename_db", "postgres", Some("elsewhere")),
        }
    }

    fn spec(&self) -> Value {
        let roles: Vec<Value> = self.roles.iter().map(DraftRole::entry).collect();
        let databases: Vec<Value> = self.databases.iter().map(DraftDatabase::entry).collect();
        let jwt: Vec<&String> =
            self.roles.iter().filter(|role| role.traits.jwt).map(|role| &role.name).collect();
        json!({
            "format_version": 1.0,
            "suspend_timeout_seconds": -1,
            "timeline_id": "8a7b6c5d4e3f2a1b0c9d8e7f6a5b4c3d",
            "cluster": { "roles": roles, "databases": databases },
            "delta_operations": self.deltas,
            "drop_subscriptions_before_start": self.drop_subscriptions,
            "local_proxy_config": { "jwks": [{
                "id": "1", "role_names": jwt, "jwks_url": "https://keys.invalid", "provider_name": "p",
            }] },
        })
    }
}

impl DraftRole {
    fn entry(&self) -> Value {
        let traits = &self.traits;
        let key = |letter: &str| format!("{}=", letter.repeat(43));
        let scram = |iterations: u32, salt: &str, letter: &str| {
            json!(format!("SCRAM-SHA-256${iterations}:{salt}${}:{}", key(letter), key("Q")))
        };
        let verifier = match traits.verifier {
            0 | 1 => Value::Null,
            2 => scram(4096, "c2FsdHNhbHRzYWx0c2FsdA==", "A"),
            3 => scram(1, "QSXCR+Q6sek8bf92", "E"),
            4 => scram(10_000, "AAAA", "I"),
            5 => json!("0123456789abcdef0123456789abcdef"),
            6 => json!("FEDCBA9876543210fedcba9876543210"),
            _ => json!("md500112233445566778899aabbccddeeff"),
        };
        let mut options = Vec::new();
        let mut used = Vec::new();
        for (flag, on, upper) in &traits.flags {
            let words = ["superuser", "inherit", "createrole", "createdb", "bypassrls", "replication"];
            if used.contains(flag) {
                continue;
            }
            used.push(*flag);
            // See the order of acts for why no spec makes superusers.
            let no = if *on && *flag != 0 { "" } else { "no" };
            let word = format!("{no}{}", words[usize::from(*flag)]);
            let word = if *upper { word.to_uppercase() } else { word };
            options.push(json!({ "name": word, "value": null, "vartype": "bool" }));
        }
        if let Some(limit) = traits.limit {
            options.push(
                json!({ "name": "Connection Limit", "value": limit.to_string(), "vartype": "integer" }),
            );
        }
        if let Some(until) = traits.until {
            let until = ["infinity", "2031-02-03 04:05:06+00", "Infinity"][usize::from(until)];
            options.push(json!({ "name": "VALID UNTIL", "value": until, "vartype": "string" }));
        }
        for group in &self.groups {
            options
                .push(json!({ "name": "IN ROLE", "value": format!("\"{group}\""), "vartype": "identifier" }));
        }
        json!({ "name": self.name, "encrypted_password": verifier, "options": options })
    }
}

impl DraftDatabase {
    fn entry(&self) -> Value {
        let traits = &self.traits;
        let mut options = Vec::new();
        match traits.source {
            1 => {
                options.push(json!({ "name": "TEMPLATE", "value": "template0", "vartype": "enum" }));
                options.push(json!({ "name": "LC_COLLATE", "value": "C", "vartype": "string" }));
                options.push(json!({ "name": "LC_CTYPE", "value": "C", "vartype": "string" }));
            }
            2 => options.push(json!({
                "name": "template", "value": format!("\"{ADMINS_TEMPLATE}\""), "vartype": "identifier",
            })),
            _ => {}
        }
        if let Some(limit) = traits.limit {
            options.push(
                json!({ "name": "CONNECTION LIMIT", "value": limit.to_string(), "vartype": "integer" }),
            );
        }
        if let Some(allow) = traits.allow {
            options
                .push(json!({ "name": "ALLOW_CONNECTIONS", "value": allow.to_string(), "vartype": "bool" }));
        }
        if let Some(template) = traits.template {
            let value = if template { "on" } else { "FALSE" };
            options.push(json!({ "name": "is_template", "value": value, "vartype": "bool" }));
        }
        json!({ "name": self.name, "owner": self.owner, "options": options })
    }
}
