//! What a server has, read by queries of the tests' own, which share nothing with the code under test.

use std::collections::{BTreeMap, BTreeSet};

use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls, Row};

use super::pg::Server;

/// Grantee (empty for everybody), grantor, privilege, and whether it may be passed on.
pub(crate) type Acl = BTreeSet<(String, String, String, bool)>;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RoleView {
    /// In the order of superuser, inherit, createrole, createdb, bypassrls, replication.
    pub(crate) flags: [bool; 6],
    pub(crate) login: bool,
    pub(crate) limit: i32,
    pub(crate) until: Option<String>,
    pub(crate) verifier: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct DatabaseView {
    pub(crate) owner: String,
    pub(crate) allow: bool,
    pub(crate) template: bool,
    pub(crate) limit: i32,
    pub(crate) locale: String,
    pub(crate) acl: Acl,
    pub(crate) subscriptions: BTreeSet<String>,
    /// Nothing for a database that cannot be entered.
    pub(crate) inside: Option<Inside>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Inside {
    /// Kind and name to owner and privileges; without the supervisor's own.
    pub(crate) objects: BTreeMap<String, (String, Acl)>,
    /// Whose objects, in which schema, of which kind, to whom, what.
    pub(crate) defaults: BTreeSet<(String, String, String, String, String, bool)>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) roles: BTreeMap<String, RoleView>,
    /// Group, member, and whether the member may admit others.
    pub(crate) members: BTreeMap<(String, String), bool>,
    pub(crate) databases: BTreeMap<String, DatabaseView>,
    /// The timeline on which subscriptions were dropped.
    pub(crate) dropped_on: Option<String>,
    /// Owner of the schema `neon`.
    pub(crate) neon: Option<String>,
}

/// A session of the tests, into which no setting of users reaches.
pub(crate) struct Observer {
    pub(crate) client: Client,
    driver: JoinHandle<()>,
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Observer {
    pub(crate) async fn enter(server: &Server, database: &str) -> Self {
        Self::enter_with(server, database, "").await
    }

    /// With further options.
    pub(crate) async fn enter_with(server: &Server, database: &str, options: &str) -> Self {
        let mut config: tokio_postgres::Config = server.connstr(database).reveal().parse().unwrap();
        config.application_name("observer").options(format!(
            "-c role=cloud_admin -c search_path=pg_catalog -c statement_timeout=0 -c lock_timeout=0 \
             -c idle_session_timeout=0 -c idle_in_transaction_session_timeout=0 -c datestyle=ISO \
             -c timezone=UTC -c default_transaction_read_only=off -c local_preload_libraries= \
             -c session_replication_role=replica -c standard_conforming_strings=on -c row_security=on \
             -c default_transaction_isolation=read\\ committed -c quote_all_identifiers=off \
             -c client_min_messages=error -c debug_print_parse=off -c debug_print_plan=off \
             -c exit_on_error=off {options}"
        ));
        let (client, connection) =
            config.connect(NoTls).await.unwrap_or_else(|error| panic!("{database:?}: {error:?}"));
        let driver = tokio::spawn(async move {
            // An end of the session is told to whoever uses it.
            let _ = connection.await;
        });
        Self { client, driver }
    }

    pub(crate) async fn rows(&self, sql: &str) -> Vec<Row> {
        self.client.query(sql, &[]).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"))
    }

    pub(crate) async fn run(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    pub(crate) async fn text(&self, sql: &str) -> String {
        self.rows(sql).await[0].get(0)
    }

    /// Where roles have something: role and database, which is nothing for what all databases share. Owners of
    /// databases are left out.
    pub(crate) async fn dependencies(&self) -> BTreeSet<(String, Option<String>)> {
        let sql = "SELECT r.rolname::text, d.datname::text FROM pg_shdepend s \
                   JOIN pg_authid r ON r.oid = s.refobjid AND s.refclassid = 'pg_authid'::regclass \
                   LEFT JOIN pg_database d ON d.oid = s.dbid \
                   WHERE NOT (s.classid = 'pg_database'::regclass AND s.deptype = 'o')";
        self.rows(sql).await.iter().map(|row| (row.get(0), row.get(1))).collect()
    }

    /// Everything, in all databases that can be entered.
    pub(crate) async fn view(&self, server: &Server) -> View {
        let mut view = View::default();
        let roles = "SELECT rolname::text, rolsuper, rolinherit, rolcreaterole, rolcreatedb, rolbypassrls, \
                     rolreplication, rolcanlogin, rolconnlimit, rolvaliduntil::text, rolpassword \
                     FROM pg_authid WHERE rolname !~ '^pg_'";
        for row in self.rows(roles).await {
            let role = RoleView {
                flags: std::array::from_fn(|at| row.get(at + 1)),
                login: row.get(7),
                limit: row.get(8),
                until: row.get(9),
                verifier: row.get(10),
            };
            view.roles.insert(row.get(0), role);
        }
        let members = "SELECT g.rolname::text, m.rolname::text, bool_or(a.admin_option) \
                       FROM pg_auth_members a JOIN pg_authid g ON g.oid = a.roleid \
                       JOIN pg_authid m ON m.oid = a.member GROUP BY 1, 2";
        for row in self.rows(members).await {
            view.members.insert((row.get(0), row.get(1)), row.get(2));
        }
        let databases = "SELECT d.datname::text, pg_get_userbyid(datdba)::text, datallowconn, datistemplate, \
                         datconnlimit, datcollate::text || ' ' || datctype::text, \
                         ARRAY(SELECT subname::text FROM pg_subscription WHERE subdbid = d.oid) \
                         FROM pg_database d";
        for row in self.rows(databases).await {
            let database = DatabaseView {
                owner: row.get(1),
                allow: row.get(2),
                template: row.get(3),
                limit: row.get(4),
                locale: row.get(5),
                subscriptions: row.get::<_, Vec<String>>(6).into_iter().collect(),
                ..DatabaseView::default()
            };
            view.databases.insert(row.get(0), database);
        }
        let privileges = "SELECT d.datname::text, a.* FROM pg_database d, \
                          LATERAL aclexplode(COALESCE(datacl, acldefault('d', datdba))) x, \
                          LATERAL (SELECT CASE x.grantee WHEN 0 THEN '' ELSE pg_get_userbyid(x.grantee)::text END, \
                          pg_get_userbyid(x.grantor)::text, x.privilege_type, x.is_grantable) a";
        for row in self.rows(privileges).await {
            let acl = &mut view.databases.get_mut(row.get::<_, &str>(0)).unwrap().acl;
            acl.insert((row.get(1), row.get(2), row.get(3), row.get(4)));
        }
        let neon = "SELECT pg_get_userbyid(nspowner)::text FROM pg_namespace WHERE nspname = 'neon'";
        view.neon = self.rows(neon).await.first().map(|row| row.get(0));
        let done =
            "SELECT count(*) FROM pg_class WHERE relname = 'drop_subscriptions_done' AND relkind = 'r'";
        if self.rows(done).await[0].get::<_, i64>(0) == 1 {
            view.dropped_on =
                Some(self.text("SELECT timeline_id FROM neon.drop_subscriptions_done WHERE id = 1").await);
        }
        for (name, database) in &mut view.databases {
            if name == "postgres" {
                database.inside = Some(self.inside().await);
            } else if database.allow && database.limit != -2 && !name.starts_with("template") {
                database.inside = Some(Observer::enter(server, name).await.inside().await);
            }
        }
        view
    }

    /// What is in this session's database.
    pub(crate) async fn inside(&self) -> Inside {
        let mut inside = Inside::default();
        let objects = "SELECT o.name, pg_get_userbyid(o.owner)::text, \
                ARRAY(SELECT CASE x.grantee WHEN 0 THEN '' ELSE pg_get_userbyid(x.grantee)::text END \
                    FROM aclexplode(o.acl) WITH ORDINALITY x(grantor, grantee, p, g, n) ORDER BY n), \
                ARRAY(SELECT pg_get_userbyid(x.grantor)::text \
                    FROM aclexplode(o.acl) WITH ORDINALITY x(grantor, grantee, p, g, n) ORDER BY n), \
                ARRAY(SELECT p FROM aclexplode(o.acl) WITH ORDINALITY x(grantor, grantee, p, g, n) ORDER BY n), \
                ARRAY(SELECT g FROM aclexplode(o.acl) WITH ORDINALITY x(grantor, grantee, p, g, n) ORDER BY n) \
            FROM (SELECT nspname::text AS name, nspname, nspowner AS owner, \
                        COALESCE(nspacl, acldefault('n', nspowner)) AS acl FROM pg_namespace \
                  UNION ALL \
                  SELECT 'relation ' || nspname || '.' || relname, nspname, relowner, \
                        COALESCE(relacl, acldefault(CASE relkind WHEN 'S' THEN 's' ELSE 'r' END::\"char\", relowner)) \
                  FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace \
                  WHERE relkind IN ('r', 'v', 'S') AND relname <> 'health_check' \
                    AND relname <> 'health_check_id_seq' \
                  UNION ALL \
                  SELECT 'function ' || p.oid::regprocedure, nspname, proowner, \
                        COALESCE(proacl, acldefault('f', proowner)) \
                  FROM pg_proc p JOIN pg_namespace n ON n.oid = pronamespace) o \
            WHERE nspname !~ '^pg_' AND nspname NOT IN ('information_schema', 'neon_migration', 'neon')";
        for row in self.rows(objects).await {
            let grantees: Vec<String> = row.get(2);
            let grantors: Vec<String> = row.get(3);
            let privileges: Vec<String> = row.get(4);
            let grantable: Vec<bool> = row.get(5);
            let acl =
                grantees.into_iter().zip(grantors).zip(privileges.into_iter().zip(grantable)).map(
                    |((grantee, grantor), (privilege, grantable))| (grantee, grantor, privilege, grantable),
                );
            inside.objects.insert(row.get(0), (row.get(1), acl.collect()));
        }
        let defaults = "SELECT pg_get_userbyid(defaclrole)::text, COALESCE(nspname::text, ''), \
                            defaclobjtype::text, \
                            CASE grantee WHEN 0 THEN '' ELSE pg_get_userbyid(grantee)::text END, \
                            privilege_type, is_grantable \
                        FROM pg_default_acl LEFT JOIN pg_namespace n ON n.oid = defaclnamespace, \
                        LATERAL aclexplode(defaclacl) WHERE grantee <> defaclrole";
        for row in self.rows(defaults).await {
            inside.defaults.insert((row.get(0), row.get(1), row.get(2), row.get(3), row.get(4), row.get(5)));
        }
        inside
    }
}
