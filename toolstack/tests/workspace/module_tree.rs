//! A crate's modules, and the module to which a path leads that one of them names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::source::{Import, NamedPath, Source};

/// A module as the names from the crate's root to it; the root's own is empty.
pub(crate) type ModulePath = Vec<String>;

/// A crate's modules, without those of tests.
#[derive(Debug, Default)]
pub(crate) struct ModuleTree(BTreeMap<ModulePath, Module>);

#[derive(Debug)]
struct Module {
    file: PathBuf,
    paths: Vec<NamedPath>,
    /// The paths of its `use`s by the names that they make known.
    imports: BTreeMap<Import, Vec<Vec<String>>>,
    /// The modules of which it has a glob import.
    globs: Vec<ModulePath>,
}

/// A path that a module names, and where it leads.
#[derive(Debug)]
pub(crate) struct Reference<'a> {
    pub(crate) from: &'a ModulePath,
    pub(crate) file: &'a Path,
    pub(crate) named: &'a NamedPath,
    /// The module that has the item, or that the path names itself.
    pub(crate) to: ModulePath,
}

/// Imports that are followed for one path; more of them lead in a circle.
const MAX_IMPORTS: usize = 8;

impl ModuleTree {
    /// Reads a crate from its root file, `lib.rs` or `main.rs`. `read` gives a file's text, `None` without the file.
    pub(crate) fn read(root: &Path, read: &dyn Fn(&Path) -> Option<String>) -> ModuleTree {
        let mut tree = ModuleTree::default();
        let text = read(root).unwrap_or_else(|| panic!("no file {}", root.display()));
        tree.add_file(&[], root, root.parent().expect("its directory"), &text, read);
        tree.find_globs();
        tree
    }

    /// The paths of all modules that lead to one of this crate's.
    pub(crate) fn references(&self) -> impl Iterator<Item = Reference<'_>> {
        self.0.iter().flat_map(move |(from, module)| {
            module.paths.iter().filter_map(move |named| {
                let to = self.find(from, &named.path, MAX_IMPORTS)?;
                Some(Reference { from, file: &module.file, named, to })
            })
        })
    }

    /// Adds a module's file and the files of its children, which are in `directory`.
    fn add_file(
        &mut self,
        module: &[String],
        file: &Path,
        directory: &Path,
        text: &str,
        read: &dyn Fn(&Path) -> Option<String>,
    ) {
        let source = Source::parse(text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        self.0.insert(module.to_vec(), Module::new(file));
        for child in source.modules {
            let path = [module, &child].concat();
            let directory = child.iter().fold(directory.to_owned(), |directory, name| directory.join(name));
            let files = [directory.with_extension("rs"), directory.join("mod.rs")];
            match files.iter().find_map(|file| Some((file, read(file)?))) {
                Some((file, text)) => self.add_file(&path, file, &directory, &text, read),
                None => {
                    let is_inline = source.inline_modules.contains(&child);
                    assert!(is_inline, "{}: no file of module {}", file.display(), child.join("::"));
                    self.0.insert(path, Module::new(file));
                }
            }
        }
        for named in source.paths {
            let path = [module, &named.inside].concat();
            self.0.get_mut(&path).expect("a module that the file declares").add(named);
        }
    }

    /// Finds the modules of glob imports; the path of one does not begin with a name that another makes known.
    fn find_globs(&mut self) {
        let of = |path: &ModulePath| {
            let globs = self.0[path].imports.get(&Import::Glob).into_iter().flatten();
            globs.filter_map(|glob| self.find(path, glob, MAX_IMPORTS)).collect()
        };
        let found: Vec<Vec<ModulePath>> = self.0.keys().map(of).collect();
        for (module, globs) in self.0.values_mut().zip(found) {
            module.globs = globs;
        }
    }

    /// The module to which `path` leads from the module `from`; `None` if it leads out of the crate, or is the name of
    /// something of `from` itself.
    fn find(&self, from: &[String], path: &[String], imports: usize) -> Option<ModulePath> {
        let mut at = from.to_vec();
        let mut rest = path;
        while let Some((first, more)) = rest.split_first() {
            match first.as_str() {
                "crate" => at.clear(),
                "super" => drop(at.pop()),
                "self" => {}
                _ => break,
            }
            rest = more;
        }
        let mut found = (rest.len() < path.len()).then(|| at.clone());
        while let Some((name, more)) = rest.split_first() {
            let Some(next) = self.step(&at, name, imports) else { break };
            at = next;
            found = Some(at.clone());
            rest = more;
        }
        found
    }

    /// The module to which `name` leads that is known in the module `at`: a child, or something imported.
    fn step(&self, at: &[String], name: &String, imports: usize) -> Option<ModulePath> {
        let child = [at, std::slice::from_ref(name)].concat();
        if self.0.contains_key(&child) {
            return Some(child);
        }
        let imports = imports.checked_sub(1)?;
        let module = &self.0[at];
        let mut named = module.imports.get(&Import::Name(name.clone())).into_iter().flatten();
        let mut globs = module.globs.iter();
        let found = named.find_map(|path| self.find(at, path, imports));
        found.or_else(|| globs.find_map(|glob| self.step(glob, name, imports)))
    }
}

impl Module {
    fn new(file: &Path) -> Module {
        Module { file: file.to_owned(), paths: Vec::new(), imports: BTreeMap::new(), globs: Vec::new() }
    }

    fn add(&mut self, named: NamedPath) {
        if let Some(import) = &named.import {
            self.imports.entry(import.clone()).or_default().push(named.path.clone());
        }
        self.paths.push(named);
    }
}
